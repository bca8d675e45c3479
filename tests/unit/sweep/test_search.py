"""The search: exhaustive measures all, the beam measures little and is never worse than greedy."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bs_cluster.config.schema import SweepSection
from bs_cluster.records import RowLoss
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.outcomes import OutcomeTable
from bs_cluster.sweep.search import next_requests, search_kind


def loss_tables(max_domains: int = 5):
    """(domain count, loss of every mask) of one row."""
    return st.integers(1, max_domains).flatmap(
        lambda d: st.tuples(st.just(d), st.lists(st.floats(0.1, 5.0), min_size=2**d, max_size=2**d))
    )


def empty_table(domain_count: int, rows: int = 1) -> OutcomeTable:
    domains = [f"d{d}" for d in range(domain_count)]
    return OutcomeTable([f"q{row}" for row in range(rows)], ["d0"] * rows, domains)


def search(table: OutcomeTable, losses, section: SweepSection, budget: int | None = None) -> dict[int, float]:
    """Answer requests from ``losses`` until the search ends or ``budget`` outcomes are measured; row 0's losses."""
    measured = 0
    while requests := next_requests(table, section):
        for row, mask in requests:
            if measured == budget:
                return table.losses(0)
            table.record(row, mask, RowLoss(losses[mask], 1))
            measured += 1
    return table.losses(0)


def greedy_loss(losses, domain_count: int) -> float:
    best = min((1 << d for d in range(domain_count)), key=lambda mask: losses[mask])
    while True:
        extensions = [best | 1 << d for d in range(domain_count) if not best >> d & 1]
        improved = min(extensions, key=lambda mask: losses[mask], default=best)
        if losses[improved] >= losses[best]:
            return min(losses[best], losses[0])
        best = improved


def test_auto_turns_to_the_beam_above_its_limit():
    section = SweepSection(exhaustive_up_to=3)
    assert [search_kind(section, d) for d in (3, 4)] == ["exhaustive", "beam"]
    assert search_kind(SweepSection(search="exhaustive", exhaustive_up_to=3), 9) == "exhaustive"


def test_exhaustive_asks_for_all_that_is_missing():
    table = empty_table(2, rows=2)
    table.record(1, 3, RowLoss(1.0, 1))
    expected = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert next_requests(table, SweepSection()) == expected


@given(loss_tables())
def test_a_beam_as_wide_as_the_table_is_exhaustive(case):
    domain_count, losses = case
    found = search(empty_table(domain_count), losses, SweepSection(search="beam", beam_width=2**domain_count))
    assert list(found) == list(all_masks(domain_count))


@given(loss_tables(6), st.integers(1, 4))
def test_a_beam_is_never_worse_than_greedy(case, width):
    domain_count, losses = case
    found = search(empty_table(domain_count), losses, SweepSection(search="beam", beam_width=width))
    assert min(found.values()) <= greedy_loss(losses, domain_count)
    assert {0, 2**domain_count - 1, *(1 << d for d in range(domain_count))} <= set(found)


@settings(max_examples=50)
@given(loss_tables(6), st.integers(1, 3), st.data())
def test_a_killed_beam_ends_with_the_same_outcomes(case, width, data):
    domain_count, losses = case
    section = SweepSection(search="beam", beam_width=width)
    whole = search(empty_table(domain_count), losses, section)
    table = empty_table(domain_count)
    search(table, losses, section, budget=data.draw(st.integers(0, len(whole))))
    resumed = OutcomeTable.from_arrow(table.to_arrow()) if len(table) else empty_table(domain_count)
    assert search(resumed, losses, section) == whole


def test_a_beam_leaves_most_of_a_large_table_alone():
    # Domains 2 and 7 help, every other one hurts: twelve domains have 4096 combinations.
    losses = [2.0 - 0.3 * (m >> 2 & 1) - 0.2 * (m >> 7 & 1) + 0.05 * m.bit_count() for m in range(2**12)]
    found = search(empty_table(12), losses, SweepSection(beam_width=2))
    assert min(found, key=lambda mask: found[mask]) == 1 << 2 | 1 << 7
    assert len(found) < 60
