"""A campaign's numbers, realistic and made up, from which tests build the report they need."""

import random

import pyarrow as pa

from bs_cluster.records import BaseRef, DomainRecord, RoundOutcome, StackId
from bs_cluster.report.inputs import ReportInputs

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
                matrix={
                    d: {
                        "base": base[d],
                        "isolated": isolated[d],
                        "ungated": isolated[d] + 0.11 * (position - i) * rng.uniform(0.4, 1.6),
                    }
                    for i, d in enumerate(domains[: position + 1])
                },
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
            "losses": {
                "base": base,
                "isolated": isolated,
                "parents": {d: isolated[d] * 0.99 for d in domains},
                "ungated": {d: isolated[d] + 0.25 * rng.random() for d in domains},
                "routed": {d: isolated[d] * rng.uniform(0.97, 1.02) for d in domains},
                "oracle": {d: isolated[d] * 0.94 for d in domains},
            },
            "loss_notes": {"oracle": "on the sweep's held-out rows"},
            "isolated_row_losses": rows,
            "overlap": {a: {b: 1.0 if a == b else 1e-6 * (1 + len(a) * len(b)) for b in domains} for a in domains}
            if null_space
            else {},
            "router": {
                "regret": 0.021,
                "label_regret": 0.034,
                "all_on_regret": 0.142,
                "base_regret": 0.61,
                "best_single_regret": 0.044,
                "accuracy": 0.91,
                "by_domain": {d: {"regret": -0.002, "label_regret": 0.03, "rows": 16} for d in domains},
            },
            "gates": {
                a: {b: rng.uniform(0.8, 0.97) if a == b else rng.uniform(0, 0.35) for b in domains} for a in domains
            },
            "outcomes": None if "outcomes" in changes else make_outcomes(domains, rng),
            "sweep": {"rows": 200, "combinations": 2 ** len(domains), "rows_per_s": 38.4, "seconds": 166.0},
            "timing": {"data": 12.0, "training": 1510.4, "sweep": 166.0, "router": 48.2, "report": 6.1},
            "data_counts": {
                d: {"train": 900, "validation": 40, "sweep": 40, "dropped_duplicates": 17, "dropped_contaminated": 3}
                for d in domains
            },
            "environment": {"python": "3.11.15", "torch": "2.13.0", "cpu": "2 cores"},
            **changes,
        }
    )


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
    lines = []
    for step in range(10, 401, 10):
        line = {"step": step, "loss": outcome.val_after * rng.uniform(0.9, 1.1), "load_balance": 1.02, "lr": 1e-4}
        if step % 50 == 0:
            fraction = 1 - 2.718 ** (-step / 90)
            line["val_loss"] = (
                outcome.val_before + (outcome.val_after - outcome.val_before) * fraction + rng.gauss(0, 0.004)
            )
        lines.append(line)
    return lines
