"""What is planned for a worker's memory is what a round takes; all cases: ``python -m benchmarks.planned_memory``."""

import pytest

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
