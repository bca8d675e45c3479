"""When a paired difference answers a question, and when it leaves it open."""

import pytest

from bs_cluster.estimates import Estimate
from bs_cluster.report.compare import below_zero


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (-0.2, -0.1, "holds"),
        (-0.1, 0.0, "undecided"),
        (-0.1, 0.1, "undecided"),
        (0.0, 0.1, "undecided"),  # one answer of 44 that is wrong instead of right
        (0.1, 0.2, "fails"),
        (0.0, 0.0, "fails"),  # the same on every row is not better
    ],
)
def test_an_end_at_zero_decides_nothing(low, high, answer):
    assert below_zero(Estimate((low + high) / 2, 0.01, low, high, 44)) == answer


def test_what_was_not_measured_has_no_answer():
    assert below_zero(None) == "not measured"
