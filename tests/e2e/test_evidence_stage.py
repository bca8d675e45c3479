"""The stages of ``make evidence`` in their quick form: on the tiny campaign, whole, then killed and gone on with."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.evidence.__main__ import main
from benchmarks.evidence.campaign import Campaign
from benchmarks.evidence.record import Instead

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory):
    """A folder of results, of the page and of trained LoRAs; the campaign's store before and after."""
    folder = tmp_path_factory.mktemp("evidence")
    before = stored(finished)
    run(folder, finished)
    return folder, before


def run(folder: Path, finished) -> None:
    arguments = ["--campaigns", f"{finished.store.uri}:tiny", "--threads", "1"]
    places = {"--results": folder / "results", "--work": folder / "work", "--docs": folder / "docs"}
    for option, place in places.items():
        arguments += [option, str(place)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evidence", *arguments])
        main()


def stored(finished) -> list[tuple[str, int]]:
    files = [path for path in Path(finished.store.uri, "tiny").rglob("*") if path.is_file()]
    return sorted((str(path), path.stat().st_mtime_ns) for path in files)


def test_every_rival_learned_from_the_rows_that_the_rounds_learned_from(measured, finished):
    campaign = Campaign(finished.store)
    for record in campaign.records:
        batches = campaign.batches[record.domain]
        assert len(batches) == sum(done.steps for done in record.rounds)
        assert {row.id for batch in batches for row in batch} <= {row.id for row in campaign.rows[record.domain].train}
    found = Instead.load(measured[0] / "results" / "instead" / "tiny.json")
    tokens = sum(found.tokens)
    base = sum(found.tried["base"].nll) / tokens
    assert base == pytest.approx(float(found.mode("base").sum()) / tokens, abs=0.01)  # both harnesses score alike
    assert all(sum(found.tried[name].nll) / tokens < base for name in ("pooled", "sum", "sequential:bb"))
    assert set(found.classified) <= {*found.domains, ""}
    assert found.tried["sum"].parameters == sum(found.tried[f"lora:{domain}"].parameters for domain in found.domains)


def test_the_store_is_read_and_never_written(measured, finished):
    assert stored(finished) == measured[1]


@pytest.mark.parametrize("missing", [("ties", "arrow", "sequential:bb"), ("sequential:aa", "sequential:bb")])
def test_a_stage_that_was_killed_goes_on_to_the_same_numbers(measured, finished, missing):
    file = measured[0] / "results" / "instead" / "tiny.json"
    whole, page = Instead.load(file), (measured[0] / "docs" / "EVIDENCE.md").read_text()
    left = {name: one for name, one in whole.tried.items() if name not in missing}
    dataclasses.replace(whole, tried=left).save(file)
    for trained in list((measured[0] / "work").rglob("sequential:*")):
        if trained.name in missing:
            shutil.rmtree(trained)
    run(measured[0], finished)
    again = Instead.load(file)
    assert set(again.tried) == set(whole.tried)
    for name, one in whole.tried.items():
        assert again.tried[name].nll == pytest.approx(one.nll, abs=1e-3), name
    assert (measured[0] / "docs" / "EVIDENCE.md").read_text().count("\n") == page.count("\n")
