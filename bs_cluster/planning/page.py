"""Writes the tables of ``docs/planning.md`` anew, each made by the command above it: ``python -m
bs_cluster.planning.page``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bs_cluster.config.parse import load_config
from bs_cluster.planning import schedule_tables
from bs_cluster.planning.hardware import hardware
from bs_cluster.planning.plan import Planner, make_plan
from bs_cluster.planning.schedule import Losses, make_scale
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
        words = overrides.split()
        settings = [word for word in words if "=" in word]
        config, on = load_config(ROOT / file, settings), hardware(node)
        if "--scale" in words:
            per_day = float(words[words.index("--losses") + 1]) if "--losses" in words else 0.0
            planner = Planner(config, on)
            scale = make_scale(planner, Losses(per_day, notice="--no-notice" not in words))
            return f"{command}{schedule_tables.markdown(scale, planner)}\n{end}"
        return f"{command}{markdown(make_plan(config, on))}\n{end}"

    return MARK.sub(planned, page)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m bs_cluster.planning.page", description=__doc__).parse_args()
    PAGE.write_text(written(PAGE.read_text()))
