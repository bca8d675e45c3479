"""What evidence makes of what its stages kept: each method's rows, differences, and a page that says no more."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import psn_found
from benchmarks.evidence import page
from benchmarks.evidence.compare import BASE, SERVED, backward, by_classifier, by_label, difference, forgotten, forward
from benchmarks.evidence.instead import Choices, pooled_batches
from benchmarks.evidence.record import Instead, Tried
from benchmarks.evidence.variants import Variant, differing, less_shipped, section
from bs_cluster.config import load_config
from bs_cluster.data.encode import EncodedRow

ROOT = Path(__file__).parents[3]
OWNERS = ("aa", "aa", "bb", "cc", "mixed:x", "foreign:y")
DOMAINS = ("aa", "bb", "cc")
MODES = ("base", "isolated", "anchor", "ungated", "routed", "oracle")


def instead(campaign: str = "demo", seed: int = 1, **nll: tuple[float, ...]) -> Instead:
    """Six rows of ten tokens: 1 nat a token under rivals that are not given, 2 under the base, 1.5 under ours."""
    names = ["base", *(f"lora:{d}" for d in DOMAINS), "sum", "mean", "ties", "dare", "arrow", "pooled"]
    tried = {name: Tried((10.0,) * 6, 5, 1.0, "") for name in (*names, *(f"sequential:{d}" for d in DOMAINS))}
    tried |= {name.replace("_", ":"): Tried(values, 5, 1.0, "") for name, values in nll.items()}
    ours = {mode: (20.0 if mode == "base" else 15.0,) * 6 for mode in MODES}
    losses = {name: {"base": 2.0, "isolated": 1.0, "ungated": 1.0} for name in DOMAINS}
    return Instead(
        campaign=campaign,
        data="embedded",
        seed=seed,
        base="tiny",
        domains=DOMAINS,
        machine="a machine",
        versions={"peft": "1"},
        row_ids=tuple(f"row {i}" for i in range(6)),
        owners=OWNERS,
        tokens=(10,) * 6,
        ours=ours,
        our_parameters=7,
        our_seconds=1.0,
        drift=0.0,
        matrix={after: {of: losses[of] for of in DOMAINS[: i + 1]} for i, after in enumerate(DOMAINS)},
        steps=dict.fromkeys(DOMAINS, 4),
        batch=8,
        rank=4,
        rate=1e-3,
        classified=("aa", "bb", "bb", "", "cc", ""),
        tried=tried,
    )


def choices() -> Choices:
    tried = {"1/0.2": 1.0, "0.5/0.2": 1.1}
    return Choices(
        campaign="demo",
        rate_domains=("aa", "bb"),
        rates={"0.0005": 1.2, "0.001": 1.1, "0.002": 1.3},
        merges={"ties": tried, "dare": tried},
    )


def kept(folder: Path, *campaigns: Instead) -> Path:
    for one in campaigns:
        one.save(folder / "instead" / f"{one.campaign}.json")
    (folder / "choices.json").write_text(json.dumps(choices().to_dict()))
    return folder


def test_a_row_is_answered_by_its_labels_lora_or_by_the_classified_one_or_by_the_base():
    found = instead(
        base=(1.0,) * 6,
        lora_aa=(2.0,) * 6,
        lora_bb=(3.0,) * 6,
        lora_cc=(4.0,) * 6,
    )
    np.testing.assert_array_equal(by_label(found), [2, 2, 3, 4, np.nan, np.nan])
    np.testing.assert_array_equal(by_classifier(found), [2, 3, 3, 1, 4, 1])


def test_transfer_and_forgetting_are_of_the_stages_that_they_are_defined_on():
    found = instead(
        base=(9.0,) * 6,
        sequential_aa=(1.0, 2.0, 3.0, 4.0, 0.0, 0.0),
        sequential_bb=(0.5, 1.5, 5.0, 6.0, 0.0, 0.0),
        sequential_cc=(10.0, 20.0, 30.0, 40.0, 0.0, 0.0),
    )
    # Rows of the last domain were never left behind, rows of the first had nothing before them.
    np.testing.assert_array_equal(backward(found), [9, 18, 25, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(forgotten(found), [9.5, 18.5, 27, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(forward(found), [np.nan, np.nan, 3 - 9, 6 - 9, np.nan, np.nan])


def test_a_row_of_two_campaigns_is_one_unit():
    one = difference([instead()], lambda found: found.nats("pooled"), "domain", SERVED.nats)
    two = difference([instead(), instead("again", 2)], lambda found: found.nats("pooled"), "domain", SERVED.nats)
    assert one is not None
    assert two is not None
    assert one.rows == two.rows == 4
    assert one.mean == two.mean == -0.5


def test_what_has_no_meaning_for_any_row_of_a_kind_is_not_compared():
    both = [instead(), dataclasses.replace(instead("other"), row_ids=tuple("abcdef"))]
    assert difference(both, by_label, "mixed") is None
    assert difference(both, BASE.nats, "mixed") is not None


def test_pooled_batches_hold_every_row_as_often_as_all_domains_batches():
    rows = [EncodedRow((1, 2), 1, str(i), "aa" if i < 6 else "bb") for i in range(12)]
    batches = [[rows[:3], rows[3:6]], [rows[6:9], rows[9:]]]
    pooled = pooled_batches(batches, seed=0)
    assert [len(batch) for batch in pooled] == [3, 3, 3, 3]
    assert sorted(row.id for batch in pooled for row in batch) == sorted(row.id for row in rows)
    assert any(len({row.domain for row in batch}) == 2 for batch in pooled)


def without(found: Instead, *names: str) -> Instead:
    return dataclasses.replace(found, tried={name: one for name, one in found.tried.items() if name not in names})


def test_a_campaign_that_has_only_begun_is_left_out_and_what_is_missing_of_another_is_a_dash(tmp_path):
    folder = kept(tmp_path, without(instead(), "pooled", "sequential:cc"), without(instead("begun"), "lora:cc"))
    groups = page.read(folder)
    assert [one.campaign for one in groups["embedded"]] == ["demo"]
    written = page.render(groups, choices())
    assert "| one LoRA on pooled data | – | – | – |" in written
    assert "| all LoRAs summed | 0 M | 1.000 | −0.500 [−0.500, −0.500] |" in written


def test_a_method_is_compared_over_the_campaigns_that_have_it():
    both = [instead(), without(instead("begun", pooled=(0.0,) * 6), "pooled")]
    found = difference(both, lambda found: found.nats("pooled"), "domain", SERVED.nats)
    assert found is not None
    assert found.mean == -0.5


def test_the_page_says_that_a_rival_is_better_where_it_is(tmp_path):
    better = page.render(page.read(kept(tmp_path, instead(pooled=(5.0, 5.1, 5.2, 5.3, 5.0, 5.0)))), choices())
    assert "On **rows of the domains**, **better than ours**: one LoRA on pooled data (−0.985 [" in better
    worse = page.render(page.read(kept(tmp_path, instead(pooled=(25.0, 25.1, 25.2, 25.3, 5.0, 5.0)))), choices())
    assert "worse than ours: one LoRA on pooled data (+1.015 [" in worse


def variant(seed: int = 1, **nll: tuple[float, ...]) -> Variant:
    """Of the same rows but the first, which it left out, and one that is new, in another order."""
    ours = {mode: nll.get(mode, (15.0,) * 6) for mode in MODES}
    return Variant(
        campaign="longer",
        data="embedded",
        seed=seed,
        settings=("training.steps=32",),
        machine="a machine",
        domains=DOMAINS,
        row_ids=("row 5", "row 4", "row 3", "row 2", "row 1", "new"),
        owners=(*OWNERS[:0:-1], "aa"),
        tokens=(10,) * 6,
        ours=ours,
        parameters=7,
        kept=2,
        rounds=3,
        seconds=60.0,
    )


def test_a_variant_is_less_what_is_shipped_on_the_rows_that_both_were_judged_on():
    varied = variant(routed=(1.0, 2.0, 3.0, 4.0, 5.0, 900.0))
    found = less_shipped([(varied, instead())], "domain", "routed")
    assert found is not None
    assert found.rows == 3
    assert found.mean == pytest.approx((3 + 4 + 5 - 3 * 15) / 30)


def test_the_page_has_a_line_a_setting_and_leaves_out_a_seed_that_was_not_run_as_shipped():
    shipped = instead()
    then = dataclasses.replace(
        variant(), settings=(), row_ids=shipped.row_ids, owners=shipped.owners, tokens=shipped.tokens
    )
    lines = "\n".join(section([then, variant(), variant(seed=2)], [shipped]))
    assert "| `training.steps=32` | 1 | 2 of 3 | +0.000 [+0.000, +0.000] |" in lines
    assert section([then, variant(seed=2)], [shipped]) == []
    assert section([variant()], [shipped]) == []


def test_a_setting_is_compared_with_what_was_shipped_beside_it():
    shipped = instead(routed=(1.0,) * 6)
    then = dataclasses.replace(variant(routed=(25.0,) * 6), settings=(), row_ids=shipped.row_ids, owners=shipped.owners)
    assert "−1.000 [−1.000, −1.000]" in "\n".join(section([then, variant()], [shipped]))


def test_settings_that_differ_are_told_as_one_would_write_them():
    shipped = load_config(ROOT / "jobs" / "configs" / "embedded.yaml")
    other = load_config(ROOT / "jobs" / "configs" / "embedded.yaml", ["campaign=b", "seed=3", "training.steps=64"])
    assert differing(other, shipped) == ("training.steps=64",)


def test_our_page_is_what_our_results_give():
    results = ROOT / "benchmarks" / "evidence" / "results"
    groups = page.read(results)
    text = (ROOT / "docs" / "EVIDENCE.md").read_text(encoding="utf-8")
    random = psn_found.read(results / "psn.json")
    assert text == page.render(groups, page.read_choices(results), page.read_variants(results), random), (
        "python -m benchmarks.evidence writes it anew"
    )
    assert all((ROOT / "docs" / "images" / page.figure_name(data)).exists() for data in groups)
