"""Stage ``variants``: what a setting is worth, from a campaign that was run with another value of it.

A variant is compared with the campaign as shipped of the same seed, row by row: the rows that both of them were judged
on, which none of them was trained on. Nothing is measured here; both campaigns recorded it. Give both of them at once:
what is shipped may change later, and a setting is compared with what was shipped beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from benchmarks.evidence.campaign import Campaign
from benchmarks.evidence.compare import difference, paired
from benchmarks.evidence.record import Instead, write_json
from bs_cluster.config import load_config
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.estimates import Estimate
from bs_cluster.records import Record
from bs_cluster.registry.descriptions import flatten
from bs_cluster.report.markdown import table
from bs_cluster.report.wording import duration

NO_SETTING = {"campaign", "seed", "store", "registry"}  # what two campaigns of one setting differ in anyway
# What is compared: rows, mode, and what the page calls it.
COMPARED = (
    ("domain", "isolated", "own stacks, label told"),
    ("domain", "routed", "routed"),
    ("domain", "ungated", "all on"),
    ("mixed", "routed", "mixed rows, routed"),
    ("foreign", "routed", "general text, routed"),
)


@dataclass(frozen=True)
class Variant(Record):
    """A finished campaign whose settings differ from those shipped: ``settings`` are those, as ``name=value``. Rows,
    ``owners`` and ``ours`` as in ``Instead``; ``kept`` of ``rounds`` were committed, in ``seconds``."""

    campaign: str
    data: str
    seed: int
    settings: tuple[str, ...]
    machine: str
    domains: tuple[str, ...]
    row_ids: tuple[str, ...]
    owners: tuple[str, ...]
    tokens: tuple[int, ...]
    ours: dict[str, tuple[float | None, ...]]
    parameters: int
    kept: int
    rounds: int
    seconds: float

    @classmethod
    def load(cls, path: Path) -> Self:
        return cls.from_dict(json.loads(path.read_text()))


def differing(config: CampaignConfig, shipped: CampaignConfig) -> tuple[str, ...]:
    """The settings of a campaign that are not as shipped, as one would write them on the command line."""

    now, before = (flatten(one.model_dump(mode="json", exclude=NO_SETTING)) for one in (config, shipped))
    return tuple(f"{name}={now[name]}" for name in sorted(now) if now[name] != before.get(name))


def of_campaign(campaign: Campaign, shipped: Path, machine: str) -> Variant:
    losses, records = campaign.losses, campaign.records
    outcomes = [done for record in records for done in record.rounds]
    return Variant(
        campaign=campaign.config.campaign,
        data=campaign.data,
        seed=campaign.config.seed,
        settings=differing(campaign.config, load_config(shipped)),
        machine=machine,
        domains=campaign.domains,
        row_ids=losses.row_ids,
        owners=losses.owners,
        tokens=losses.tokens,
        ours={mode: tuple(nll) for mode, nll in losses.nll.items()},
        parameters=campaign.trained_parameters(),
        kept=sum(done.committed for done in outcomes),
        rounds=len(outcomes),
        seconds=sum(done.seconds for done in outcomes),
    )


def save(variant: Variant, folder: Path) -> None:
    write_json(folder / f"{variant.campaign}.json", variant.to_dict())


def shared(variant: Variant, shipped: Instead) -> Instead:
    """The campaign as shipped on the rows that it shares with the variant, whose losses are its modes' and the own ones
    ``shipped:``'s: so a difference of modes is one of settings, row by row."""
    mine = {row: place for place, row in enumerate(variant.row_ids)}
    rows = [place for place, row in enumerate(shipped.row_ids) if row in mine]

    def picked(values: Sequence[Any], of: Callable[[int], int]) -> tuple[Any, ...]:
        return tuple(values[of(row)] for row in rows)

    there = {mode: picked(nll, lambda row: mine[shipped.row_ids[row]]) for mode, nll in variant.ours.items()}
    here = {f"shipped:{mode}": picked(nll, lambda row: row) for mode, nll in shipped.ours.items()}
    return replace(
        shipped,
        row_ids=picked(shipped.row_ids, lambda row: row),
        owners=picked(shipped.owners, lambda row: row),
        tokens=picked(shipped.tokens, lambda row: row),
        ours={**there, **here},
        tried={},
    )


def less_shipped(pairs: Sequence[tuple[Variant, Instead]], kind: str, mode: str) -> Estimate | None:
    """A mode's loss on rows of a kind under a setting, less that as shipped, over seeds (``compare.difference``)."""
    return difference(
        [shared(variant, shipped) for variant, shipped in pairs],
        lambda found: found.mode(mode),
        kind,
        lambda found: found.mode(f"shipped:{mode}"),
    )


def _as_of(then: Variant, shipped: Instead) -> Instead:
    """The campaign as shipped, with the losses that it recorded when the variants did."""
    assert then.row_ids == shipped.row_ids, f"{then.campaign} was judged on other rows"
    return replace(shipped, ours=then.ours)


def section(variants: Sequence[Variant], shipped: Sequence[Instead]) -> list[str]:
    """The page's part; nothing where no variant has its counterpart."""
    then = {(one.data, one.seed): one for one in variants if not one.settings}
    counterparts = {(found.data, found.seed): found for found in shipped}
    counterparts = {key: _as_of(one, counterparts[key]) for key, one in then.items() if key in counterparts}
    pairs: dict[tuple[str, ...], list[tuple[Variant, Instead]]] = {}
    for variant in sorted(variants, key=lambda one: (one.settings, one.seed)):
        if variant.settings and (counterpart := counterparts.get((variant.data, variant.seed))) is not None:
            pairs.setdefault(variant.settings, []).append((variant, counterpart))
    if not pairs:
        return []
    lines = [
        [
            ", ".join(f"`{setting}`" for setting in settings),
            ", ".join(str(variant.seed) for variant, _ in own),
            ", ".join(f"{variant.kept} of {variant.rounds}" for variant, _ in own),
            *(paired(less_shipped(own, kind, mode)) for kind, mode, _ in COMPARED),
            duration(sum(variant.seconds for variant, _ in own) / len(own)),
        ]
        for settings, own in pairs.items()
    ]
    header = ["setting", "seeds", "rounds kept", *(name for _, _, name in COMPARED), "rounds took"]
    first = next(iter(pairs.values()))[0][1]
    return [
        "## What the settings are worth",
        f"Whole campaigns of `{first.base}` with other settings, less the one as shipped of the same seed, in nats per "
        "completion token on the rows that both were judged on: **below 0, the other setting is better**. 95 % "
        "intervals over rows. That one round of 32 steps is shipped was decided after a look at these rows of seed 42; "
        "other seeds had no part in it. That a stack trains beside its own domain's alone was decided on seeds 42 and "
        "1; of the null space no choice was made here. Both sides have the meta-router of their day, before strangers "
        "were served a quarter of their gates.",
        table(header, lines),
    ]
