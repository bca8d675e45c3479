"""What a campaign guarantees by construction, checked all the same: to the bit, or to what storage rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bs_cluster.certificate import Isolated, Verdict, compare_probes
from bs_cluster.records import Spread
from bs_cluster.report.record import Answer, Check, RoundReport

# Squared cosine below which two subspaces count as orthogonal. bfloat16 storage alone leaves about 1e-5.
OVERLAP_TOLERANCE = 1e-3


# What a probe may come to but "holds", the worst first, and what the check then says.
OPEN: dict[Verdict, Answer] = {"does not hold": "fails", "cannot be judged": "undecided"}


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


def logits_are_equal(proofs: Sequence[Isolated]) -> Check:
    """By the certificate's digests: bits where they can be compared, losses within a tolerance where they cannot."""
    statement = "Isolated logits are those of each domain's closing"
    if not proofs:
        return Check(statement, "not measured", "no domain was probed at its closing and now")
    found = {one.domain: compare_probes(one.at_closing, one.now) for one in proofs}
    for verdict, answer in OPEN.items():
        told = [f"{domain}: {why}" for domain, (said, why) in found.items() if said == verdict]
        if told:
            return Check(statement, answer, "; ".join(told))
    rows = sum(len(one.now.rows) for one in proofs)
    return Check(statement, "holds", f"equal digests on {rows} probe rows of {len(proofs)} domains")


def frozen_beats_parent(rounds: Sequence[RoundReport]) -> Check:
    statement = "Nothing worse than its parent was frozen"
    committed = [row for row in rounds if row.committed]
    if not committed:
        return Check(statement, "not measured", "no stack was committed")
    worse = [row.name for row in committed if row.gain is None or row.gain <= 0]
    counts = f"{len(committed)} rounds committed, {len(rounds) - len(committed)} turned away"
    return Check(statement, "fails" if worse else "holds", f"worse: {', '.join(worse)}; {counts}" if worse else counts)


def claims_are_disjoint(
    overlap: Mapping[str, Mapping[str, float | None]], in_claims: Mapping[str, Mapping[str, Spread]]
) -> Check:
    """Of claims with claims, and of what later deltas leave in earlier output claims. Neither says how much of a delta
    a claim holds: that is measured, and no check."""
    statement = "Claims are disjoint, by parametrisation"
    pairs = [(overlap[a].get(b), f"{a} and {b}") for a in overlap for b in overlap if a < b]
    known = [(value, where) for value, where in pairs if value is not None]
    if not known:
        return Check(statement, "not measured", "fewer than two domains claimed directions")
    largest, where = max(known)
    detail = f"largest mean squared cosine of two claims {largest:.2g}, {where} (1 is the same subspace)"
    leaks = [(spread.worst, a, b) for a, row in in_claims.items() for b, spread in row.items()]
    leak, later, earlier = max(leaks, default=(0.0, "", ""))
    if later:
        detail += f"; at most {leak:.2g} of the energy of {later} lies in what {earlier} claimed, at any site"
    holds = largest <= OVERLAP_TOLERANCE and leak <= OVERLAP_TOLERANCE
    return Check(statement, "holds" if holds else "fails", detail)
