"""What people read: tables that parse, lines that fit, figures that are there."""

import dataclasses
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from unit.report.campaign import make_answers, make_inputs, make_losses

from bs_cluster.records import Spread
from bs_cluster.report.build import build_report
from bs_cluster.report.curves import selection_curve
from bs_cluster.report.html import render_html
from bs_cluster.report.markdown import render_markdown, table
from bs_cluster.report.record import EVERY
from bs_cluster.report.terminal import render_terminal, terminal_console
from bs_cluster.report.write import write_report

EVERY_KIND = {"chat": True, "code": True, "mixed:dose": True, "foreign:news": True}


def with_kinds():
    return make_inputs(("chat", "code"), losses=make_losses(EVERY_KIND), **make_answers(EVERY_KIND))


@pytest.fixture(scope="module")
def everything():
    return build_report(with_kinds())


def printed(report, width=100):
    console = terminal_console(io.StringIO())
    console.width = width
    console.print(render_terminal(report))
    return console.file.getvalue()


def markdown_tables(page):
    """Runs of table lines, each split into cells at unescaped bars."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", page, flags=re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().splitlines()] for block in blocks]


@pytest.mark.parametrize("inputs", [make_inputs(), make_inputs(null_space=False, committed=False), with_kinds()])
def test_every_table_has_equal_columns(inputs):
    tables = markdown_tables(render_markdown(build_report(inputs)))
    assert len(tables) >= 5
    for rows in tables:
        assert len({len(row) for row in rows}) == 1
        assert set("".join(rows[1])) <= set("-: ")


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_no_cell_can_break_a_table(cells):
    lines = table(["a"] * len(cells), [cells]).split("\n")
    assert len(lines) == 3
    assert len(re.split(r"(?<!\\)\|", lines[2])) == len(cells) + 2


def test_findings_come_first_then_checks_and_each_says_its_interval_and_rows():
    page = render_markdown(build_report(make_inputs(losses=make_losses({"chat": True}, routed=-0.5))))
    assert page.index("## Findings") < page.index("## Checks") < page.index("## Loss by mode")
    line = next(line for line in page.splitlines() if "no worse than routing by label" in line)
    assert re.search(r"\| \+0\.5\d\d \| \[\+0\.\d{3}, \+0\.\d{3}\] \| 24 \|.*❌ fails", line)


def test_the_best_servable_mode_is_bold_and_the_oracle_never():
    page = render_markdown(build_report(make_inputs(("chat",), losses=make_losses({"chat": True}, routed=-1.05))))
    line = next(line for line in page.splitlines() if line.startswith("| chat | "))
    assert line.count("**") == 2
    assert re.search(r"\*\*\d\.\d{3}\*\* \| \d\.\d{3} \| 24 \|$", line)


def test_validation_rows_stand_in_a_table_of_their_own():
    page = render_markdown(build_report(make_inputs()))
    assert "isolated at commit" not in page[page.index("## Loss by mode") : page.index("## Rounds")]
    assert "isolated at commit" in page[page.index("## Validation rows") :]


def test_what_claims_hold_stands_apart_from_the_check_that_they_are_disjoint():
    inputs = make_inputs(("chat", "code"))
    code = dataclasses.replace(
        inputs.records[1],
        energy_held={"output": Spread(0.946, 0.77, "model.layers.7.mlp.up_proj")},
        overlap={"chat": Spread(0.04, 0.16, "s")},
        foreign={"chat": Spread(0.25, 0.5, "s")},
        abroad={"chat": Spread(0.89, 1.7, "s")},
    )
    chat = dataclasses.replace(inputs.records[0], energy_held={"output": Spread(0.95, 0.8, "s")})
    report = build_report(dataclasses.replace(inputs, records=(chat, code)))
    page = render_markdown(report)
    assert page.index("Claims are disjoint, by parametrisation") < page.index("## What claims hold and what crosses")
    section = page[page.index("## What claims hold") : page.index("## Data")]
    assert "| code | 94.6 % (77.0 %) | `model.layers.7.mlp.up_proj` |" in section
    assert "| code | 4.0 % (16.0 %) |" in section
    assert "| chat | 100 % | 89.0 % (170.0 %) |" in section
    assert "| code | 25.0 % (50.0 %) | 100 % |" in section
    text = " ".join(printed(report).split())
    assert "write 57.0 % of the own ones' energy, code on chat 89.0 %; 4.0 % of a later delta" in text
    assert re.search(r"ungated loss \d\.\d{3}, \d\.\d{3} with the own stacks alone", text)
    assert "(77.0 % at the worst site)" in text


def test_answers_stand_with_their_intervals_the_rows_that_were_not_asked_and_an_example_of_each(everything):
    page, text = render_markdown(everything), printed(everything)
    section = page[page.index("## Answers") : page.index("## Meta-router")]
    shares, examples = markdown_tables(section)
    assert [line[0].strip() for line in shares[2:]] == [*EVERY_KIND, "all domains", "all mixed", "all foreign", EVERY]
    assert shares[-1][2].strip() == "–"  # isolated has no meaning for all of them
    assert re.fullmatch(r"\d+ \(\d+\.\d %\) \[0\.\d\d, [01]\.\d\d\]", shares[2][1].strip())
    assert [line[0].strip() for line in examples[2:]] == [*EVERY_KIND]
    assert all("is 0?" in line[1] and "says 0" in line[3] and "says 0" in line[4] for line in examples[2:])
    assert "\x1b" not in page
    assert "16 rows of chat that nothing can check; 1 row of code longer than 32 tokens" in section
    assert "right answers" in text
    none = render_markdown(build_report(make_inputs(unasked={"chat": {"that nothing can check": 16}})))
    assert "No answer was checked.\n\nNot asked: 16 rows of chat that nothing can check." in none


def test_without_two_domains_nothing_crosses():
    page = render_markdown(build_report(make_inputs(("chat",))))
    assert "Energy held" in page
    assert "Overlap of deltas" not in page
    assert "Who fires where" not in page
    assert "ungated " not in printed(build_report(make_inputs(("chat",)))).split("rounds, on")[1]


@pytest.mark.parametrize("width", [70, 100, 160])
def test_no_line_is_wider_than_the_terminal(width, everything):
    assert max(map(cell_len, printed(everything, width).splitlines())) <= width


def test_a_log_holds_no_escape_codes_and_a_terminal_without_colour_neither(monkeypatch, everything):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\033" not in printed(everything)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\033" in printed(everything)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in printed(everything)


def test_undecided_is_said():
    text = printed(build_report(make_inputs(losses=make_losses({"chat": True}, routed=-0.99, noise=0.4))))
    assert "by label: undecided" in " ".join(text.split())


def test_many_domains_point_to_the_page():
    report = build_report(make_inputs(tuple(f"domain_{i}" for i in range(14)), outcomes=()))
    assert printed(report).count("2 more in report.md") >= 3


def test_writes_the_report_and_every_figure_it_names(tmp_path):
    report = write_report(with_kinds(), tmp_path / "report")
    assert (tmp_path / "report/report.json").read_bytes() == report.to_json()
    assert json.loads((tmp_path / "report/report.json").read_text())["campaign"] == "demo"
    assert len(report.figures) == 8
    page = (tmp_path / "report/report.md").read_text()
    for figure in report.figures:
        image = (tmp_path / "report" / figure.file).read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 5000
        assert f"({figure.file})" in page
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "figures",
        "report.md",
        "report.html",
        "report.json",
    }


def test_one_file_shows_the_report_with_its_figures_and_loads_nothing(tmp_path):
    report = write_report(with_kinds(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(report.figures)
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|<script""", page) == []
    assert "<details><summary>Configuration</summary>" in page
    assert page.count("<table>") == (tmp_path / "report.md").read_text().count("\n| ---")


def test_what_rows_hold_is_text_in_it(tmp_path):
    page = render_html("demo", "| prompt |\n|---|\n| <script>alert(1)</script> |\n", tmp_path, ())
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({"domains": ("chat",)}, {"loss_by_mode", "regret", "boosting"}),
        (
            {"null_space": False, "committed": False, "outcomes": ()},
            {"loss_by_mode", "regret", "boosting", "loss_matrix", "gates"},
        ),
        (
            {"records": (), "isolated_row_losses": {}, "losses": make_losses({}), "outcomes": (), "gates": {},
             "overlap": {}},
            set(),
        ),
    ],
    ids=["one domain", "no null space, no stack, no sweep", "nothing at all"],
)  # fmt: skip
def test_missing_pieces_leave_figures_out(tmp_path, changes, drawn):
    report = write_report(make_inputs(**changes), tmp_path)
    assert {figure.file for figure in report.figures} == {f"figures/{name}.png" for name in drawn}


def test_writing_again_gives_the_same_bytes(tmp_path):
    write_report(make_inputs(("chat", "code")), tmp_path)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    write_report(make_inputs(("chat", "code")), tmp_path)
    assert first == {path: path.read_bytes() for path in tmp_path.rglob("*.*")}


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    left = tmp_path / ".staging-of-one-that-was-killed" / "figures"
    left.mkdir(parents=True)
    (left / "losses.png").write_bytes(b"half")
    write_report(make_inputs(("chat", "code")), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "report.md", "report.html", "report.json"}


def test_curves_are_of_the_rows_that_select_and_of_no_others():
    """The losses before and after a round are of other rows: none of them is a point of its curve."""
    inputs = make_inputs()
    for record in inputs.records:
        for outcome in record.rounds:
            history = inputs.histories.get(outcome.stack.name, [])
            drawn = selection_curve(history)
            assert drawn == [(line["step"], line["selection_loss"]) for line in history if "selection_loss" in line]
            assert not {outcome.val_before, outcome.val_after} & {loss for _, loss in drawn}
            assert bool(drawn) == outcome.committed  # of a rejected round nothing is stored to draw


def test_wherever_a_round_has_a_loss_the_reader_is_told_of_which_rows():
    report = build_report(make_inputs())
    text, page = printed(report), render_markdown(report)
    assert "rounds, on the rows that decide" in text
    assert "all validation rows" in text
    rounds = page[page.index("## Rounds") : page.index("## Validation rows")]
    assert "rows that decide" in " ".join(rounds.split())
    (table,) = markdown_tables(rounds)
    column = [cell.strip() for cell in table[0]].index("rows")
    assert {line[column].strip() for line in table[2:]} == {str(row.rows) for row in report.stacks}
