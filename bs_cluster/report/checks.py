"""What a campaign guarantees by construction, checked all the same: to the bit, or to what storage rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bs_cluster.report.record import Check, RoundReport

# Squared cosine below which two subspaces count as orthogonal. bfloat16 storage alone leaves about 1e-5.
OVERLAP_TOLERANCE = 1e-3


def nothing_moved(largest: float | None, by_domain: Mapping[str, float | None], rows: int) -> Check:
    statement = "No earlier domain moved when later ones were trained"
    if not rows:
        return Check(statement, "not measured", "no domain's rows were scored again at the end")
    if largest is None:
        return Check(statement, "fails", f"rows among {rows} gave a loss before and NaN now, or the reverse")
    if largest == 0:
        return Check(statement, "holds", f"isolated losses are equal to the bit on all {rows} validation rows")
    where = max(by_domain, key=lambda domain: by_domain[domain] or 0.0)
    return Check(
        statement, "fails", f"a row of {where} moved by {largest:.3g} nats per token, the largest of {rows} rows"
    )


def frozen_beats_parent(rounds: Sequence[RoundReport]) -> Check:
    statement = "Nothing worse than its parent was frozen"
    committed = [row for row in rounds if row.committed]
    if not committed:
        return Check(statement, "not measured", "no stack was committed")
    worse = [row.name for row in committed if row.gain is None or row.gain <= 0]
    counts = f"{len(committed)} rounds committed, {len(rounds) - len(committed)} turned away"
    return Check(statement, "fails" if worse else "holds", f"worse: {', '.join(worse)}; {counts}" if worse else counts)


def claims_are_orthogonal(overlap: Mapping[str, Mapping[str, float | None]]) -> Check:
    statement = "Domains claim orthogonal directions"
    pairs = [(overlap[a].get(b), f"{a} and {b}") for a in overlap for b in overlap if a < b]
    known = [(value, where) for value, where in pairs if value is not None]
    if not known:
        return Check(statement, "not measured", "fewer than two domains claimed directions")
    largest, where = max(known)
    detail = f"largest mean squared cosine of two claims {largest:.2g}, {where} (1 is the same subspace)"
    return Check(statement, "holds" if largest <= OVERLAP_TOLERANCE else "fails", detail)
