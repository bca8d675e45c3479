"""Parts: large ones, whole ones, and nothing lost when a sweep ends badly."""

import numpy as np
import pytest

from bs_cluster.errors import StoreError
from bs_cluster.store import SweepArea
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.sweep import parts as parts_module
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.parts import PART_OUTCOMES, Measured, PartWriter

DOMAINS = ("chat", "code")
TABLE = OutcomeTable([f"q{row:05}" for row in range(9000)], ["chat"] * 9000, DOMAINS)


@pytest.fixture
def area(tmp_path) -> SweepArea:
    return SweepArea(LocalFiles(tmp_path), "sweep")


def batch(first: int, count: int = 500, table: OutcomeTable = TABLE, start: int = 0) -> Measured:
    row_N = np.arange(first, first + count)
    return Measured(table, start, row_N, np.ones_like(row_N), 2.0 * row_N + 1, np.full(count, 4))


def test_batches_are_gathered_to_large_parts_that_say_their_rows(area):
    with PartWriter(area) as writer:
        for at in range(0, 3 * PART_OUTCOMES, 500):
            writer.add(batch(at % 9000))
    written = [area.read([part]).num_rows for part in area.parts()]
    assert written == [PART_OUTCOMES] * 3
    assert [(part.first, part.last) for part in area.parts()] == [(0, 8999)] * 3
    with PartWriter(area) as writer:
        writer.add(batch(20, 5, start=100_000))
    assert (area.parts()[-1].first, area.parts()[-1].last) == (100_020, 100_024)
    assert area.read(area.parts()[-1:]).to_pydict() == {
        "row_id": [f"q{row:05}" for row in range(20, 25)],
        "domain": ["chat"] * 5,
        "mask": [1] * 5,
        "nll": [2.0 * row + 1 for row in range(20, 25)],
        "tokens": [4] * 5,
    }


def test_a_part_may_span_shards(area):
    later = OutcomeTable(["late"], ["code"], DOMAINS)
    with PartWriter(area) as writer:
        writer.add(batch(8990, 10))
        writer.add(batch(0, 1, later, start=9000))
    (part,) = area.parts()
    assert (part.first, part.last) == (8990, 9000)
    assert area.read([part])["domain"].to_pylist() == ["chat"] * 10 + ["code"]


def test_what_came_in_is_written_however_it_ends(area):
    class Killed(Exception):
        pass

    def killed() -> None:
        with PartWriter(area) as writer:
            writer.add(batch(0, 7))
            raise Killed

    with pytest.raises(Killed):
        killed()
    assert area.read(area.parts()).num_rows == 7


def test_few_outcomes_do_not_wait_for_ever(area, monkeypatch):
    monkeypatch.setattr(parts_module, "UNWRITTEN_S", 0.0)
    writer = PartWriter(area)
    writer.add(batch(0, 7))
    writer.add(batch(7, 7))
    with writer:
        pass
    assert [area.read([part]).num_rows for part in area.parts()] == [7, 7]


def test_a_part_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="file"), PartWriter(SweepArea(LocalFiles(tmp_path), "file/sweep")) as writer:
        writer.add(batch(0, 7))


def test_the_same_part_again_replaces_itself(area):
    for _ in range(2):
        with PartWriter(area) as writer:
            writer.add(batch(0, 7))
    assert len(area.parts()) == 1
