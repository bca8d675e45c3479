"""Whatever happens to one file of a finished store, what is loaded is what was committed, or nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
from damage_trials import Figure, finished, trials


@pytest.fixture(scope="module")
def histories(tmp_path_factory) -> tuple[Path, Path]:
    """A finished campaign's folder, and a twin of another content."""
    folder = tmp_path_factory.mktemp("damage")
    return finished(folder / "ours", 3), finished(folder / "twin", 4)


def test_two_hundred_damages_are_found_or_harmless(histories, tmp_path):
    figure = Figure(trials(range(200), 0, histories, tmp_path, mend_every=5))
    print(figure)
    assert len(figure.ended) == 200
    assert figure.count(damage="flip", how="refused") > 10  # damages do damage


@pytest.mark.long
def test_two_thousand_more(histories, tmp_path):
    figure = Figure(trials(range(2000), 1, histories, tmp_path))
    print(figure)
    assert len(figure.ended) == 2000
