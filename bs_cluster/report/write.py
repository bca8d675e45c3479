"""Write a report into a folder so that whoever finds ``report.json`` finds everything it speaks of."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path

from bs_cluster.failpoints import failpoint
from bs_cluster.report.build import build_report
from bs_cluster.report.figures import draw_figures
from bs_cluster.report.html import render_html
from bs_cluster.report.inputs import ReportInputs
from bs_cluster.report.markdown import render_markdown
from bs_cluster.report.record import Report

STAGING = ".staging-"


def write_report(inputs: ReportInputs, directory: str | Path) -> Report:
    """Write ``figures/*.png``, ``report.md``, ``report.html`` and ``report.json`` (canonical JSON) under ``directory``;
    the report.

    All of it is made in a staging folder first, then moved in file by file with ``report.json`` last: a reader sees
    whole files only, and a run killed on the way leaves the former ``report.json`` or none. Writing again replaces, and
    clears away what a killed run had staged.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    report = build_report(inputs)
    for left in target.glob(f"{STAGING}*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=target, prefix=STAGING) as staging_name:
        staging = Path(staging_name)
        report = dataclasses.replace(report, figures=draw_figures(inputs, report, staging / "figures"))
        figures, text = [figure.file for figure in report.figures], render_markdown(report)
        (staging / "report.md").write_text(text, encoding="utf-8")
        (staging / "report.html").write_text(render_html(report.campaign, text, staging, figures), encoding="utf-8")
        (staging / "report.json").write_bytes(report.to_json())
        failpoint("report.write")
        for name in [*figures, "report.md", "report.html", "report.json"]:
            (target / name).parent.mkdir(exist_ok=True)
            os.replace(staging / name, target / name)
    return report
