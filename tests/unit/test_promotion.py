"""A bundle becomes champion only if nobody is served worse by more than chance, and what hands decide stays decided."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.promotion import decide, read_losses, served_change, standing, write_losses
from bs_cluster.records import ModeLosses, Promotion

OWNERS = ("chat", "medical", "mixed:doses", "foreign:games")
ROWS = 24


def losses(means: dict[str, float], seed: int = 0, noise: float = 0.0, rows: int = ROWS) -> ModeLosses:
    """Rows of ten tokens each, served with these mean losses."""
    random = np.random.default_rng(seed)
    owners = tuple(owner for owner in means for _ in range(rows))
    nll = tuple(10 * (means[owner] + noise * float(random.normal())) for owner in owners)
    ids = tuple(f"{owner}-{row}" for owner in means for row in range(rows))
    return ModeLosses(ids, owners, (10,) * len(ids), {"routed": nll})


def same(mean: float, **others: float) -> dict[str, float]:
    return {owner: others.get(owner.partition(":")[0], mean) for owner in OWNERS}


def change(now, former):
    return served_change(2, now, 1, former)


def test_the_first_bundle_is_champion_unless_a_person_decides():
    assert decide("guarded", None).alias == "champion"
    assert decide("always", None).alias == "champion"
    assert decide("manual", None).alias == "challenger"


def test_the_same_losses_are_no_regression_and_say_on_how_many_rows():
    found = change(losses(same(2.0)), losses(same(2.0)))
    assert found.worse == ()
    assert [item.group for item in found.groups] == ["chat", "medical", "all mixed", "all foreign"]
    decision = decide("guarded", found)
    assert decision.alias == "champion"
    assert "96 rows" in decision.reason
    assert decide("manual", found).alias == "challenger"


@pytest.mark.parametrize(
    ("owner", "group"), [("medical", "medical"), ("mixed", "all mixed"), ("foreign", "all foreign")]
)
def test_one_group_served_worse_holds_the_alias_though_the_rest_got_better(owner, group):
    found = change(losses(same(0.5, **{owner: 2.3})), losses(same(2.0)))
    assert [item.group for item in found.worse] == [group]
    decision = decide("guarded", found)
    assert decision.alias == "challenger"
    assert f"{group} +0.300 [+0.300, +0.300] on {ROWS} rows" in decision.reason
    assert "bundle 1" in decision.reason
    assert decide("always", found).alias == "champion"


def test_a_difference_within_chance_is_none():
    found = change(losses(same(2.02), seed=2, noise=0.5), losses(same(2.0), seed=1, noise=0.5))
    assert any(item.difference.mean > 0.01 for item in found.groups)
    assert found.worse == ()


@pytest.mark.parametrize(("harm", "worse"), [(0.005, False), (0.02, True)])
def test_a_certain_harm_below_the_tolerance_is_let_pass(harm, worse):
    assert bool(change(losses(same(2.0 + harm)), losses(same(2.0))).worse) is worse


def test_only_rows_of_both_are_compared_and_a_new_domain_is_nobodys_loss():
    former, now = losses(same(2.0)), losses({**same(2.0), "legal": 9.0})
    assert (change(now, former).shared, change(now, former).rows) == (96, 120)
    assert decide("guarded", change(now, former)).alias == "champion"


def test_rows_cut_to_another_length_are_other_rows():
    now = losses(same(2.0))
    longer = ModeLosses(now.row_ids, now.owners, (11,) * len(now.row_ids), now.nll)
    assert change(longer, now).shared == 0


def test_what_cannot_be_compared_is_not_promoted():
    lost = change(losses({"chat": 1.0}), losses({"chat": 2.0, "medical": 2.0}))
    assert lost.missing == ("medical",)
    for found in (lost, change(losses(same(2.0)), ModeLosses((), (), (), {}))):
        decision = decide("guarded", found)
        assert decision.alias == "challenger"
        assert "cannot be compared" in decision.reason


def test_a_row_that_lost_its_loss_is_worse_than_any_number():
    former = losses({"chat": 2.0})
    now = ModeLosses(former.row_ids, former.owners, former.tokens, {"routed": (None, *former.nll["routed"][1:])})
    assert [item.group for item in change(now, former).worse] == ["chat"]
    assert decide("guarded", change(now, former)).alias == "challenger"
    assert change(former, now).shared == ROWS - 1  # and one that gained one has nothing to be compared with


def test_one_row_decides_nothing():
    found = change(losses({"chat": 9.0}, rows=1), losses({"chat": 2.0}, rows=1))
    assert (found.groups[0].difference, found.worse) == (None, ())


# the first call imports Parquet
@given(st.lists(st.none() | st.floats(0, 1e6), max_size=8))
def test_losses_survive_the_file(nll):
    whole = ModeLosses(
        tuple(map(str, range(len(nll)))),
        ("chat",) * len(nll),
        (3,) * len(nll),
        {"routed": tuple(nll), "base": tuple(nll)},
    )
    assert read_losses(write_losses(whole)) == whole
    assert not any(math.isnan(value) for value in nll if value is not None)


def history(*steps: tuple[int, str]) -> list[Promotion]:
    """``(bundle, by)``; ``challenger`` as ``by`` is a guarded one that was not let in."""
    return [
        Promotion(1, n, bundle, "m" * 64, "challenger" if by == "challenger" else "champion", by, "")
        for n, (bundle, by) in enumerate(steps, start=1)
    ]


@pytest.mark.parametrize(
    ("steps", "champion", "former", "challenger"),
    [
        ((), None, [], None),
        (((1, "guarded"),), 1, [], None),
        (((1, "guarded"), (2, "challenger")), 1, [], 2),
        (((1, "guarded"), (2, "challenger"), (3, "challenger")), 1, [], 3),
        (((1, "guarded"), (2, "challenger"), (2, "hand")), 2, [1], None),
        (((1, "guarded"), (2, "guarded"), (1, "rollback")), 1, [], None),
        (((1, "guarded"), (2, "guarded"), (3, "guarded"), (2, "rollback"), (1, "rollback")), 1, [], None),
        (((1, "guarded"), (2, "guarded"), (1, "rollback"), (3, "guarded")), 3, [1], None),
        (((1, "guarded"), (1, "hand")), 1, [], None),
    ],
)
def test_a_history_of_promotions_comes_to_one_champion(steps, champion, former, challenger):
    found = standing(history(*steps))
    assert (found.champion and found.champion.bundle) == champion
    assert [promotion.bundle for promotion in found.former] == former
    assert (found.challenger and found.challenger.bundle) == challenger
