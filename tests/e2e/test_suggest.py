"""``domains suggest`` on a finished campaign: its sweep rows and those of a file, which become a source of rows."""

import json
from collections import Counter

import pytest

from bs_cluster.campaign.gaps import Gaps
from bs_cluster.cli.main import main
from bs_cluster.config.sources import JsonlSource
from bs_cluster.data.domains import read_rows
from bs_cluster.store.bundle_config import bundle_config

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def suggested(finished, capsys, *words: str) -> Gaps:
    first = ("--bundle", "1")  # others' tests add the very task that is to be missing here
    place = ("--store", finished.store.uri, "--campaign", finished.store.campaign, *first)
    assert main(["domains", "suggest", *place, *words, "--json"]) == 0
    return Gaps.from_dict(json.loads(capsys.readouterr().out))


def test_rows_of_a_task_that_was_never_trained_are_found_and_can_be_trained_on(finished, inputs, tmp_path, capsys):
    alone = suggested(finished, capsys)
    out, path = tmp_path / "gaps.jsonl", inputs / "cc.jsonl"
    found = suggested(finished, capsys, "--prompts", str(path), "--rows", "30", "--out", str(out))
    assert found.rows == alone.rows + 30
    assert found.poor > alone.poor
    grouped = Counter(row.owner for gap in found.gaps for row in gap.rows)
    assert grouped["file:cc.jsonl"] > 0
    assert all(row.best == min(row.base, row.served) for gap in found.gaps for row in gap.rows if ":" in row.owner)
    first = JsonlSource(kind="jsonl", path=str(out), where={"gap": "1"})
    _, _, bundle = finished.store.bundles()[0]
    read = read_rows(first, "dd", bundle_config(finished.store, bundle), Counter())
    assert [(row.prompt, row.completion) for row in read] == [
        (row.prompt, row.completion) for row in found.gaps[0].rows
    ]


def test_a_bundle_or_a_file_that_is_not_there_is_told_before_anything_is_loaded(finished, capsys):
    place = ("--store", finished.store.uri, "--campaign", finished.store.campaign)
    assert main(["domains", "suggest", *place, "--prompts", "nowhere.jsonl"]) == 2
    assert "nowhere.jsonl: there is no such file" in capsys.readouterr().err
    assert main(["domains", "suggest", *place, "--bundle", "99"]) == 2
