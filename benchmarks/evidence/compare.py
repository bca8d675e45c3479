"""What is compared with what: each way of answering a campaign's rows, and differences over several campaigns.

Campaigns of several seeds share rows: a row, known by its id, is one unit, its nats and its tokens summed over the
campaigns that have it, and the bootstrap draws units. So intervals are over rows, for the trainings that were made; how
far seeds lie apart is shown beside them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.evidence.record import Instead, Nats
from bs_cluster.estimates import Estimate, estimate
from bs_cluster.report.compare import measured
from bs_cluster.report.wording import NOT_MEASURED, interval, signed
from bs_cluster.sweep.owners import kind_of

Of = Callable[[Instead], Nats]
KINDS = {"domain": "rows of the domains", "mixed": "mixed rows", "foreign": "general text"}


@dataclass(frozen=True)
class Method:
    """``told`` says that the row's label is told, or hindsight: nothing that one could serve. ``trained`` names what of
    ``Instead.tried`` it takes, empty for ours."""

    name: str
    nats: Of
    told: bool = False
    trained: Callable[[Instead], Sequence[str]] = lambda found: ()

    def parameters(self, found: Instead) -> int:
        own = self.trained(found)
        return sum(found.tried[name].parameters for name in own) if own else found.our_parameters


def loras(found: Instead) -> list[str]:
    return [f"lora:{domain}" for domain in found.domains]


def stages(found: Instead) -> list[str]:
    return [f"sequential:{domain}" for domain in found.domains]


def by_label(found: Instead) -> Nats:
    """Each row of a domain under its own domain's LoRA."""
    return _picked(found, [f"lora:{owner}" if owner in found.domains else None for owner in found.owners])


def by_classifier(found: Instead) -> Nats:
    """Each row under the LoRA of the domain that the classifier names, under the bare base where it names none."""
    return _picked(found, [f"lora:{domain}" if domain else "base" for domain in found.classified])


def best_lora(found: Instead) -> Nats:
    return np.min([found.nats(name) for name in ("base", *loras(found))], axis=0)


def _picked(found: Instead, names: Sequence[str | None]) -> Nats:
    known = {name: found.nats(name) for name in set(names) if name is not None}
    return np.array([np.nan if name is None else known[name][row] for row, name in enumerate(names)])


def _tried(name: str) -> Of:
    return lambda found: found.nats(name)


def _mode(name: str) -> Of:
    return lambda found: found.mode(name)


def last_stage(found: Instead) -> Nats:
    return found.nats(stages(found)[-1])


RIVALS = (
    Method("one LoRA on pooled data", _tried("pooled"), trained=lambda found: ["pooled"]),
    Method("one LoRA, domain after domain", last_stage, trained=lambda found: stages(found)[-1:]),
    Method("a LoRA a domain, label told", by_label, told=True, trained=loras),
    Method("a LoRA a domain, label classified", by_classifier, trained=loras),
    Method("all LoRAs summed", _tried("sum"), trained=loras),
    Method("all LoRAs averaged", _tried("mean"), trained=loras),
    Method("merged by TIES", _tried("ties"), trained=loras),
    Method("merged by DARE", _tried("dare"), trained=loras),
    Method("Arrow routing of LoRAs", _tried("arrow"), trained=loras),
    Method("best LoRA of each row, in hindsight", best_lora, told=True, trained=loras),
)
SERVED = Method("ours, routed", _mode("routed"))
OURS = (
    SERVED,
    Method("ours, label told", _mode("isolated"), told=True),
    Method("ours, label classified", _mode("anchor")),
    Method("ours, all on", _mode("ungated")),
    Method("ours, best of each row, in hindsight", _mode("oracle"), told=True),
)
BASE = Method("nothing: the base", _mode("base"))

# The same way of choosing, with LoRAs and with stacks.
ALIKE = {
    "label told": (by_label, _mode("isolated")),
    "label classified": (by_classifier, _mode("anchor")),
    "all of them on": (_tried("sum"), _mode("ungated")),
}


def backward(found: Instead) -> Nats:
    """What the sequential LoRA lost, after the last domain, of what it had right after the row's own."""
    return last_stage(found) - _picked(found, _stage_of(found, 0, last=False))


def forward(found: Instead) -> Nats:
    """The sequential LoRA right before the row's own domain was trained, less the base."""
    return _picked(found, _stage_of(found, -1, last=True)) - found.nats("base")


def forgotten(found: Instead) -> Nats:
    """What it lost, after the last domain, of the best that it had of the row's domain before."""
    owners, best = np.array(found.owners), np.full(len(found.owners), np.nan)
    for domain in found.domains[:-1]:
        rows = owners == domain
        earlier = [found.nats(name)[rows] for name in stages(found)[:-1]]
        best[rows] = min(earlier, key=lambda nats_B: float(nats_B.sum()))
    return last_stage(found) - best


def _stage_of(found: Instead, offset: int, last: bool) -> list[str | None]:
    """By row, the stage that many domains after its own; None for rows of the first domain, or of the last one, which
    have none to compare with, and for rows of no domain."""
    left_out = found.domains[0] if last else found.domains[-1]
    places = {domain: place for place, domain in enumerate(found.domains) if domain != left_out}
    names = stages(found)
    return [names[places[owner] + offset] if owner in places else None for owner in found.owners]


def difference(campaigns: Sequence[Instead], of: Of, kind: str, less: Of | None = None) -> Estimate | None:
    """``of`` (less another), in nats per token over all rows of a kind for which it has a meaning, of the campaigns in
    which it was tried; None without any."""
    ids: list[str] = []
    nats, tokens = [], []
    for found in with_it(campaigns, of):
        nats_B = of(found) - (less(found) if less else 0.0)
        kinds_B = np.array([kind_of(owner, found.domains) for owner in found.owners])
        rows = np.flatnonzero((kinds_B == kind) & ~np.isnan(nats_B))
        ids += [found.row_ids[row] for row in rows]
        nats.append(nats_B[rows])
        tokens.append(np.array(found.tokens, dtype=float)[rows])
    if not ids:
        return None
    _, unit_N = np.unique(ids, return_inverse=True)
    return measured(estimate(np.bincount(unit_N, np.concatenate(nats)), np.bincount(unit_N, np.concatenate(tokens))))


def with_it(campaigns: Sequence[Instead], of: Of) -> list[Instead]:
    """The campaigns in which all that ``of`` takes was tried."""
    having = []
    for found in campaigns:
        with contextlib.suppress(KeyError):  # of what was not tried, as Instead.nats says
            of(found)
            having.append(found)
    return having


def domain_loss(campaigns: Sequence[Instead], of: Of, domain: str) -> float:
    """Nats per token over the domain's rows of the campaigns in which it was tried; NaN without any."""
    nats = tokens = 0.0
    for found in with_it(campaigns, of):
        rows = np.array(found.owners) == domain
        nats += float(of(found)[rows].sum())
        tokens += float(np.array(found.tokens)[rows].sum())
    return nats / tokens if tokens else math.nan


def paired(found: Estimate | None) -> str:
    """A difference and its interval; a dash for none."""
    return f"{signed(found.mean)} {interval(found)}" if found else NOT_MEASURED
