"""A campaign's numbers, realistic and made up, from which tests build the report they need."""

import random

import pyarrow as pa

from bs_cluster.records import (
    BaseRef,
    DomainRecord,
    JudgedAnswer,
    ModeLosses,
    Probe,
    ProbedRow,
    RoundOutcome,
    Spread,
    StackId,
)
from bs_cluster.report.inputs import ReportInputs, RouterFacts
from bs_cluster.report.record import SweepReport

DOMAINS = ("chat", "code", "math", "medical", "reasoning")
BASE_LOSS = {"chat": 3.10, "code": 1.62, "math": 1.45, "medical": 2.38, "reasoning": 1.21}


def make_inputs(domains=DOMAINS, *, null_space=True, committed=True, seed=0, **changes) -> ReportInputs:
    """Inputs of a plausible campaign over ``domains``; ``changes`` replace whole fields."""
    rng = random.Random(seed)
    base = {d: BASE_LOSS.get(d, 2.0) for d in domains}
    share = {d: rng.uniform(0.62, 0.85) if committed else 1.0 for d in domains}
    isolated = {d: base[d] * share[d] for d in domains}
    rows = {d: tuple(isolated[d] + rng.gauss(0, 0.2) for _ in range(40)) for d in domains}
    records, histories = [], {}
    for position, domain in enumerate(domains):
        rounds = _rounds(rng, domain, base[domain], isolated[domain], committed)
        for outcome in rounds:
            if outcome.committed:  # of a rejected round nothing is stored
                histories[outcome.stack.name] = _history(rng, outcome)
        records.append(
            DomainRecord(
                schema_version=1,
                domain=domain,
                position=position,
                rounds=rounds,
                basis="b" * 64 if null_space and committed else None,
                basis_rank_mean=41.5 if null_space and committed else 0.0,
                isolated=isolated[domain],
                base_loss=base[domain],
                row_losses=rows[domain],
                probe=Probe((ProbedRow(f"{domain}-0", "a" * 64, isolated[domain]),), {"torch": "2.13.0"}),
                matrix={
                    d: {
                        "base": base[d],
                        "isolated": isolated[d],
                        "ungated": isolated[d] + 0.11 * (position - i) * rng.uniform(0.4, 1.6),
                    }
                    for i, d in enumerate(domains[: position + 1])
                },
                **_energies(rng, domains[:position], null_space and committed),
                span="e" * 64 if committed else None,
                capacity={"640": 0.065 * (position + 1), "2048": 0.02 * (position + 1)} if null_space else {},
                data_fingerprint="f" * 64,
                rows="d" * 64,
                data_counts={"train": 900},
                seconds=300.0,
            )
        )
    return ReportInputs(
        **{
            "campaign": "demo",
            "config_yaml": "campaign: demo\nseed: 42\n",
            "base": BaseRef("embedded:gemma3-270m", "d" * 64, "nf4"),
            "domains": tuple(domains),
            "records": tuple(records),
            "histories": histories,
            "losses": make_losses(dict.fromkeys(domains, committed)),
            "rows_note": "sweep rows",
            "isolated_row_losses": rows,
            "overlap": {a: {b: 1.0 if a == b else 1e-6 * (1 + len(a) * len(b)) for b in domains} for a in domains}
            if null_space
            else {},
            "router": RouterFacts(accuracy=0.91, best_single="chat", notes=("The learned gates are served.",)),
            "gates": {
                a: {b: rng.uniform(0.8, 0.97) if a == b else rng.uniform(0, 0.35) for b in domains} for a in domains
            },
            "outcomes": () if "outcomes" in changes else (make_outcomes(domains, rng),),
            "sweep": SweepReport(rows=200, combinations=2 ** len(domains), rows_per_s=38.4, seconds=166.0, reused=0),
            "timing": {"data": 12.0, "training": 1510.4, "sweep": 166.0, "router": 48.2, "report": 6.1},
            "data_counts": {
                d: {"train": 900, "validation": 40, "sweep": 40, "dropped_duplicates": 17, "dropped_contaminated": 3}
                for d in domains
            },
            "environment": {"python": "3.11.15", "torch": "2.13.0", "cpu": "2 cores"},
            **changes,
        }
    )


# Nats per token by which a mode differs from the base, on a domain's own rows and on rows that no domain owns.
OWNED = {
    "isolated": -1.0, "parents": -0.95, "ungated": 0.6, "routed": -1.005, "label": -1.0, "best_single": -0.3,
    "oracle": -1.1,
}  # fmt: skip
UNOWNED = {
    "mixed:": {"ungated": 0.3, "routed": -0.5, "best_single": -0.2, "oracle": -0.6},
    "foreign:": {"ungated": 1.5, "routed": 0.0, "best_single": 0.2, "oracle": -0.1},
}


def make_losses(owners, rows_each=24, seed=0, noise=0.02, **shifts) -> ModeLosses:
    """Rows of ``owners`` (a mapping of owner to whether it has stacks); ``shifts`` replace a mode's difference."""
    rng = random.Random(seed)
    names = [owner for owner in owners for _ in range(rows_each)]
    tokens = tuple(rng.randint(5, 60) for _ in names)
    base = [rng.uniform(1.5, 3.0) for _ in names]
    nll: dict[str, list[float | None]] = {"base": [b * t for b, t in zip(base, tokens, strict=True)]}
    for mode in OWNED:
        nll[mode] = []
        for owner, b, t in zip(names, base, tokens, strict=True):
            kind = next((kind for kind in UNOWNED if owner.startswith(kind)), None)
            usual = (UNOWNED[kind] if kind else OWNED).get(mode)
            shift = None if usual is None else shifts.get(mode, usual)
            shift = shift if kind or owners[owner] or mode in ("ungated", "best_single") else 0.0
            wiggle = 0.0 if shift == 0 else rng.gauss(0, noise)
            nll[mode].append(None if shift is None else t * (b + shift + wiggle))
    ids = tuple(f"{owner}-{i}" for i, owner in enumerate(names))
    return ModeLosses(ids, tuple(names), tokens, {mode: tuple(values) for mode, values in nll.items()})


def make_answers(owners, rows_each=6, seed=0, **shares) -> dict:
    """Report inputs with answers to rows of ``owners``, right as often as ``shares`` say by mode."""
    rng = random.Random(seed)
    usual = {"base": 0.15, "isolated": 0.6, "ungated": 0.4, "routed": 0.65, "oracle": 0.7} | shares
    answers = [
        JudgedAnswer(
            row_id=f"{owner}-{row}",
            owner=owner,
            mode=mode,
            gates=(0.5, 0.0),
            prompt=f"What | is {row}?",
            reference=f"It is {row}.",
            text=f"`{mode}`\nsays {row}\x1b",
            right=rng.random() < share,
        )
        for owner in owners
        for row in range(rows_each)
        for mode, share in usual.items()
        if mode != "isolated" or ":" not in owner
    ]
    unasked = {"chat": {"that nothing can check": 16}, "code": {"longer than 32 tokens": 1}}
    return {"answers": tuple(answers), "unasked": unasked, "answer_tokens": 32}


def make_outcomes(domains, rng, rows_each=8) -> pa.Table:
    lines = []
    for i, domain in enumerate(domains):
        for row in range(rows_each):
            tokens, base = rng.randint(5, 60), rng.uniform(1.2, 3.2)
            for mask in range(2 ** len(domains)):
                gain = 0.55 * (mask >> i & 1) - 0.05 * mask.bit_count() + 0.12 * (mask >> (i + 1) % len(domains) & 1)
                gain = 0.0 if mask == 0 else gain + rng.gauss(0, 0.05)
                lines.append((f"{domain}-{row}", domain, mask, tokens * (base - gain), tokens))
    columns = zip(*lines, strict=True)
    return pa.table(dict(zip(("row_id", "domain", "mask", "nll", "tokens"), columns, strict=True)))


def _energies(rng, earlier, claimed: bool) -> dict[str, dict[str, Spread]]:
    def spread(low, high, times):
        mean = rng.uniform(low, high)
        return Spread(mean, mean * times, f"model.layers.{rng.randint(0, 17)}.mlp.up_proj")

    return {
        "energy_held": {"output": spread(0.93, 0.96, 0.82)} if claimed else {},
        "overlap": {other: spread(0.03, 0.06, 3.5) for other in earlier} if claimed else {},
        "overlap_claimed": {other: spread(1e-7, 1e-6, 2.0) for other in earlier} if claimed else {},
        "foreign": {other: spread(0.2, 0.5, 2.0) for other in earlier} if claimed else {},
        "abroad": {other: spread(0.4, 0.89, 2.0) for other in earlier} if claimed else {},
    }


def _rounds(rng, domain, base, isolated, committed) -> tuple[RoundOutcome, ...]:
    def outcome(number, before, after, kept, reason):
        manifest = f"{number}" * 64 if kept else None
        gain = before - after
        return RoundOutcome(
            StackId(domain, number), before, after, gain, 0.05 * gain, 40, kept, manifest, 400, 0, 151.0, reason
        )

    if not committed:
        return (outcome(1, base, base + 0.02, False, "not better than its parent by 0.002"),)
    if rng.random() < 0.5:
        middle = isolated + 0.2 * (base - isolated)
        return (outcome(1, base, middle, True, "improved"), outcome(2, middle, isolated, True, "improved"))
    return (
        outcome(1, base, isolated, True, "improved"),
        outcome(2, isolated, isolated + 0.004, False, "not better than its parent by 0.002"),
    )


def _history(rng, outcome) -> list[dict]:
    """The curve on the rows that select: others than those of ``val_before`` and ``val_after``, and so not at them."""
    before, after = outcome.val_before + 0.3, outcome.val_after + 0.3
    lines: list[dict] = [{"step": 0, "selection_loss": before}]
    for step in range(10, 401, 10):
        line = {"step": step, "loss": outcome.val_after * rng.uniform(0.9, 1.1), "load_balance": 1.02, "lr": 1e-4}
        if step % 50 == 0:
            fraction = 1 - 2.718 ** (-step / 90)
            line["selection_loss"] = before + (after - before) * fraction + rng.gauss(0, 0.004)
        lines.append(line)
    return lines
