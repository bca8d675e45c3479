"""What people read: tables that parse, lines that fit, figures that are there."""

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.report.campaign import make_inputs

from bs_cluster.records import canonical_json
from bs_cluster.report.build import build_report
from bs_cluster.report.markdown import render_markdown, table
from bs_cluster.report.terminal import MAX_LINES, render_terminal, visible_length
from bs_cluster.report.write import write_report

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_]{0,39}", fullmatch=True)


def markdown_tables(page):
    """Runs of table lines, each split into cells at unescaped bars."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", page, flags=re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().splitlines()] for block in blocks]


@pytest.mark.parametrize("changes", [{}, {"null_space": False}, {"committed": False}, {"router": {}}])
def test_every_table_has_equal_columns(changes):
    tables = markdown_tables(render_markdown(build_report(make_inputs(**changes))))
    assert len(tables) >= 5
    for rows in tables:
        assert len({len(row) for row in rows}) == 1
        assert set("".join(rows[1])) <= set("-: ")


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_no_cell_can_break_a_table(cells):
    lines = table(["a"] * len(cells), [cells]).split("\n")
    assert len(lines) == 3
    assert len(re.split(r"(?<!\\)\|", lines[2])) == len(cells) + 2


def test_the_page_starts_with_the_verdicts_and_marks_failures():
    page = render_markdown(build_report(make_inputs(router={"regret": 0.5, "label_regret": 0.1})))
    assert page.index("## Verdicts") < page.index("## Loss by domain and mode")
    assert "❌ **Does not hold:** **The meta-router beats routing by label.**" in page


def test_the_best_servable_mode_is_bold_and_the_oracle_never():
    inputs = make_inputs(("chat",))
    losses = {mode: {"chat": 2.0} for mode in inputs.losses} | {"routed": {"chat": 1.5}, "oracle": {"chat": 1.0}}
    page = render_markdown(build_report(dataclasses.replace(inputs, losses=losses)))
    assert "| **1.500** | 1.000 |" in page


@settings(max_examples=25, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), NAMES, st.integers(40, 160), st.booleans())
def test_a_terminal_report_fits(domains, campaign, width, committed):
    report = build_report(make_inputs(tuple(domains), campaign=campaign, committed=committed, outcomes=None))
    for colour in (True, False):
        lines = render_terminal(report, width, colour).split("\n")
        assert len(lines) <= MAX_LINES
        assert max(map(visible_length, lines)) <= width
        assert colour or not any("\033" in line for line in lines)


def test_many_domains_still_fit_a_screen():
    report = build_report(make_inputs(tuple(f"domain_{i}" for i in range(20)), outcomes=None))
    text = render_terminal(report, 80, colour=False)
    assert len(text.split("\n")) <= MAX_LINES
    assert "more in report.md" in text


def test_writes_the_report_and_every_figure_it_names(tmp_path):
    report = write_report(make_inputs(), tmp_path / "report")
    assert (tmp_path / "report/report.json").read_bytes() == canonical_json(report) + b"\n"
    assert json.loads((tmp_path / "report/report.json").read_text())["campaign"] == "demo"
    assert len(report["figures"]) == 6
    page = (tmp_path / "report/report.md").read_text()
    for figure in report["figures"]:
        image = (tmp_path / "report" / figure["file"]).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 5000
        assert f"({figure['file']})" in page
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"figures", "report.md", "report.json"}


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({"domains": ("chat",)}, {"loss_by_mode", "boosting"}),
        (
            {"null_space": False, "committed": False, "outcomes": None},
            {"loss_by_mode", "boosting", "loss_matrix", "gates"},
        ),
        ({"records": (), "isolated_row_losses": {}, "losses": {}, "outcomes": None, "gates": {}, "overlap": {}}, set()),
    ],
    ids=["one domain", "no null space, no stack, no sweep", "nothing at all"],
)
def test_missing_pieces_leave_figures_out(tmp_path, changes, drawn):
    report = write_report(make_inputs(**changes), tmp_path)
    assert {figure["file"] for figure in report["figures"]} == {f"figures/{name}.png" for name in drawn}


def test_writing_again_gives_the_same_bytes(tmp_path):
    write_report(make_inputs(), tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    write_report(make_inputs(), tmp_path)
    assert first == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
