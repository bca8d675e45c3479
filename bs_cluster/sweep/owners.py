"""Whose a sweep row is: a domain's, or nobody's.

``mixed:<kind>`` rows ask for more than one capability at once, ``foreign:<kind>`` rows for none of the bundle's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from bs_cluster.errors import DataError

Kind = Literal["domain", "mixed", "foreign"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(owner: str, domains: Sequence[str]) -> Kind:
    """What kind of row ``owner`` names. Raises DataError for an owner that is no domain of the bundle either."""
    if owner in domains:
        return "domain"
    kind, colon, name = owner.partition(":")
    if colon and name and kind in ("mixed", "foreign"):
        return kind  # type: ignore[return-value]
    raise DataError(
        f"sweep rows belong to {owner!r}, the bundle has only {list(domains)}; rows without a domain are mixed:<kind> "
        "or foreign:<kind>"
    )
