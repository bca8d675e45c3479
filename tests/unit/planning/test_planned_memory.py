"""What is planned for a worker's memory is what a round takes; all cases: ``python -m benchmarks.planned_memory``."""

import pytest
from tiny import save_tiny_base

from benchmarks.planned_memory import GEMMA, RANDOM, TOLERANCE, Case, measured_alone, planned


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(GEMMA, rows=2, row_tokens=128),
        Case(GEMMA, rank=8, experts=2, rows=4, row_tokens=64, frozen=2, cached=True, directions=16, zero_stage=0),
        Case(RANDOM, rank=8, experts=2, rows=2, row_tokens=64, ranks=2, zero_stage=3),
    ],
)
def test_a_worker_takes_the_memory_that_was_planned(case):
    assert planned(case) == pytest.approx(measured_alone(case), rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{}, {"pairs": True, "frozen": 1, "noise": False}])
def test_what_is_measured_is_a_round_that_runs(tmp_path, kind):
    """So small a base weighs nothing beside what the process itself takes: it only has to end."""
    tiny = Case(save_tiny_base(tmp_path, "llama"), rank=2, experts=2, rows=2, row_tokens=16, **kind)
    assert planned(tiny) > 0
    assert measured_alone(tiny) > 0
