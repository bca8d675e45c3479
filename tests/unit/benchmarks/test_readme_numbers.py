"""README's numbers are a run's, and a run that contradicts them is caught."""

from pathlib import Path

import pytest
from unit.report.campaign import make_inputs, make_losses

from benchmarks.readme import BEGIN, END, disagreements, main, read, region, write
from bs_cluster.report.build import build_report

PAGE = f"# Title\n\nbefore\n\n{BEGIN}\n{END}\n\nafter\n"


@pytest.fixture(scope="module")
def report():
    return make_report()


def make_report(**changes):
    return build_report(make_inputs(("chat",), losses=make_losses({"chat": True, "mixed:dose": True}, **changes)))


def test_what_is_written_is_read_back_and_only_the_region_changes(report):
    page = write(PAGE, report)
    assert page.startswith("# Title\n\nbefore\n\n")
    assert page.endswith("\n\nafter\n")
    lines = {line.name: line for line in read(page)}
    base = lines["Routed beats the base"]
    found = next(f for f in report.findings if f.statement == "Routed beats the base").parts[0].difference
    assert (base.mean, base.low, base.high) == (round(found.mean, 3), round(found.low, 3), round(found.high, 3))
    assert base.answer == "holds"
    assert write(page, report) == page


def test_another_day_agrees_and_another_result_does_not(report):
    published = read(region(report))
    assert disagreements(published, published) == []
    worse = disagreements(published, read(region(make_report(routed=0.5))))
    assert any("Routed beats the base: README says holds, this run says fails" in line for line in worse)
    gone = disagreements(published, read(region(build_report(make_inputs(("chat",), losses=make_losses({}))))))
    assert any("not in this run's report" in line for line in gone)


def test_an_interval_that_moved_away_is_a_contradiction_though_the_answer_is_the_same(report):
    moved = disagreements(read(region(report)), read(region(make_report(isolated=-0.5))))
    assert any("own stacks lower its loss: chat: README says" in line for line in moved)
    assert not any("says holds" in line for line in moved)


def test_the_command_fails_where_the_run_contradicts(report, tmp_path, capsys):
    readme, now = tmp_path / "README.md", tmp_path / "report.json"
    readme.write_text(PAGE)
    now.write_bytes(report.to_json())
    assert main(["--write", str(now), "--readme", str(readme)]) == 0
    assert main(["--check", str(now), "--readme", str(readme)]) == 0
    now.write_bytes(make_report(routed=0.5).to_json())
    assert main(["--check", str(now), "--readme", str(readme)]) == 1
    assert "Routed beats the base" in capsys.readouterr().out


def test_our_readme_has_the_region():
    assert isinstance(read((Path(__file__).parents[3] / "README.md").read_text()), list)
    with pytest.raises(ValueError, match="no region"):
        read("# Title")
