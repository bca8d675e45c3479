"""Gap detection on domains that are left out on purpose, of a finished campaign: is what then is missing found?

    python -m benchmarks.gaps --store stacks_store --campaign embedded

Nothing trains anew. For each domain in turn the newest bundle's outcomes are those of combinations without it, and the
anchor is taught without its prompts; its sweep rows are rows of nobody then, among those of the other domains, the
mixed and the foreign ones. Told are how many of its rows are found, how many of the covered domains' rows are taken for
poor with them, what else the rule could be (limits alone, losses alone), the groups that hold its rows, and what was
promised for the rows found against what the domain, when it is there, does gain. Shares with 95 % Wilson intervals.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.routing import Finished
from bs_cluster.campaign.gaps import AskedRow, Gap, Looked, group_gaps
from bs_cluster.campaign.in_process import encoder
from bs_cluster.estimates import Share, share
from bs_cluster.quiet import quieten
from bs_cluster.report.markdown import table
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.gaps import Standard, beyond_limits
from bs_cluster.store import Store


class LeftOut(NamedTuple):
    """What is found where a domain is left out: by rule the share of its rows and of the covered domains' rows that are
    taken for poor or are in a group, the groups with rows of it, and in nats what was promised for its poor rows and
    what it gains."""

    domain: str
    found: dict[str, Share]
    taken: dict[str, Share]
    gaps: tuple[Gap, ...]
    promised: float
    gained: float


def leave_out(finished: Finished, domain: str, training_NF: np.ndarray, states_BF: np.ndarray) -> LeftOut:
    """Everything about one domain. ``training_NF`` are pooled states of all training prompts, domain by domain."""
    table, domains = finished.table, finished.domains
    place, owner_N = domains.index(domain), np.repeat(np.arange(len(domains)), [len(rows) for rows in finished.train])
    kept = [d for d in range(len(domains)) if d != place]
    others_N = owner_N != place
    anchor = fit_anchor(training_NF[others_N], np.searchsorted(kept, owner_N[others_N]), len(kept))
    masks = table.masks()
    nll_BC = table.nll_BC(masks)
    without_C = np.array([not mask >> place & 1 for mask in masks])
    best_B = np.nanmin(nll_BC[:, without_C], axis=1) / table.tokens_B
    base_B = table.loss_BC([0])[:, 0]
    own_B = np.array([owner == domain for owner in table.owners])
    covered_B = np.array([owner in domains for owner in table.owners]) & ~own_B
    standard = Standard.of(base_B[covered_B], best_B[covered_B])
    losses = zip(finished.rows, finished.texts, table.tokens_B.tolist(), base_B.tolist(), best_B.tolist(), strict=True)
    rows = [AskedRow(row.id, row.domain, *words, n, base, best, None) for row, words, n, base, best in losses]
    looked = Looked.at(rows, states_BF, anchor, standard)
    beyond_B = beyond_limits(anchor, anchor.directions(states_BF))
    gaps = group_gaps(anchor, [looked])
    offered = {row.id for gap in gaps for row in gap.rows}
    rules = {
        "both": looked.poor_B,
        "in a group": np.array([id in offered for id in table.row_ids]),
        "limits alone": beyond_B,
        "losses alone": standard.poor(base_B, best_B, np.zeros_like(beyond_B)),
    }
    gained_B = best_B - table.best_nll() / table.tokens_B
    poor = np.flatnonzero(looked.poor_B & own_B)
    return LeftOut(
        domain,
        {rule: _share(hit_B[own_B]) for rule, hit_B in rules.items()},
        {rule: _share(hit_B[covered_B]) for rule, hit_B in rules.items()},
        tuple(gap for gap in gaps if domain in gap.owners),
        looked.promise(poor),
        float(gained_B[poor] @ table.tokens_B[poor]),
    )


def _share(hit_B: np.ndarray) -> Share:
    found = share(hit_B.tolist())
    assert found is not None, "a campaign has sweep rows of every domain"
    return found


def page(results: Sequence[LeftOut]) -> str:
    """Three tables: rows by rule, groups, and promises."""
    rules = list(results[0].found)
    rows = [[one.domain, *(_told(part[rule]) for rule in rules for part in (one.found, one.taken))] for one in results]
    pooled = [
        "all",
        *(
            _told(_pooled([getattr(one, part)[rule] for one in results]))
            for rule in rules
            for part in ("found", "taken")
        ),
    ]
    header = ["left out", *(f"{what}, {rule}" for rule in rules for what in ("its rows", "others'"))]
    groups = [
        [
            one.domain,
            len(gap.rows),
            gap.owners[one.domain],
            ", ".join(f"{n} {owner}" for owner, n in gap.owners.items()),
        ]
        for one in results
        for gap in one.gaps
    ]
    promises = [[one.domain, f"{one.promised:.0f}", f"{one.gained:.0f}"] for one in results]
    return "\n\n".join(
        (
            table(header, [*rows, pooled]),
            table(["left out", "rows of the group", "its own", "whose"], groups),
            table(["left out", "promised, nats", "gained with the domain, nats"], promises),
        )
    )


def _told(part: Share) -> str:
    return f"{part.count} of {part.rows} [{part.low:.2f}, {part.high:.2f}]"


def _pooled(parts: Sequence[Share]) -> Share:
    return _share(np.concatenate([np.arange(part.rows) < part.count for part in parts]))


def main() -> None:
    quieten()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gaps")
    parser.add_argument("--store", default="stacks_store")
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    finished = Finished(Store(arguments.store, arguments.campaign), arguments.device)
    encode = encoder(finished.stacked, finished.config)
    training = [row.input_ids[: row.prompt_length] for rows in finished.train for row in rows]
    training_NF, states_BF = np.stack(encode(training, True)), np.stack(encode(finished.prompts, True))
    print(page([leave_out(finished, domain, training_NF, states_BF) for domain in finished.domains]))


if __name__ == "__main__":
    main()
