"""Writes the tables of ``docs/planning.md`` anew, each made by the command above it: ``python -m
bs_cluster.planning.page``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bs_cluster.config.parse import load_config
from bs_cluster.planning.hardware import hardware
from bs_cluster.planning.plan import make_plan
from bs_cluster.planning.tables import markdown

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/planning.md"
MARK = re.compile(
    r"(    bs_cluster plan --config (\S+) ([^\n]*?)--on (\S+)\n\n<!-- plan -->\n)(.*?)(<!-- end -->)", re.S
)


def written(page: str) -> str:
    """The page with every plan in it made anew."""

    def planned(found: re.Match[str]) -> str:
        command, file, overrides, node, _, end = found.groups()
        plan = make_plan(load_config(ROOT / file, overrides.split()), hardware(node))
        return f"{command}{markdown(plan)}\n{end}"

    return MARK.sub(planned, page)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bs_cluster.planning.page", description=__doc__).parse_args()
    PAGE.write_text(written(PAGE.read_text()))
