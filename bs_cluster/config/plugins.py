"""What other packages add: row formats, kinds of source and optimizers, by entry points; verifiers, by their place.

    [project.entry-points."bs_cluster.formats"]
    court = "my_package.formats:court"          # a function: raw row (a mapping) -> (prompt, completion)

    [project.entry-points."bs_cluster.sources"]
    ledger = "my_package.ledger:LedgerSource"   # a subclass of bs_cluster.config.sources.SourceSection

    [project.entry-points."bs_cluster.optimizers"]
    lion = "my_package.lion:build"              # bs_cluster.training.optimizer says what it is

A source's ``verify: my_package.verdicts:judge`` needs no entry point: a function of prompt, reference and answer.

A source's module also registers its reader with ``bs_cluster.data.readers.raw_rows``. It is imported while
``bs_cluster.config`` is, so of this package it imports those two modules only. Every node must have the package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from bs_cluster.errors import ConfigError

FORMATS = "bs_cluster.formats"
SOURCES = "bs_cluster.sources"
OPTIMIZERS = "bs_cluster.optimizers"


def found(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, in order of name."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def load(group: str, name: str) -> object:
    """What the entry point names. Raises ConfigError when no package here has it, or it cannot be imported."""
    point = found(group).get(name)
    if point is None:
        raise ConfigError([f"{group}: no package on this machine adds {name}; install it on every node"])
    try:
        return point.load()
    except Exception as error:  # anything at all may go wrong in another's module
        package = point.dist.name if point.dist else "its package"
        raise ConfigError(
            [f"{group}: {name} of {package} cannot be loaded from {point.value} ({error}); mend or uninstall {package}"]
        ) from error


def function_at(place: str) -> Callable[..., object]:
    """The function at ``package.module:function``. Raises ConfigError where there is none on this machine."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", place):
        raise ConfigError([f"{place!r} names no function; write package.module:function"])
    try:
        found = EntryPoint(place, place, "").load()
    except Exception as error:  # anything at all may go wrong in another's module
        raise ConfigError([f"{place} cannot be loaded ({error}); install its package on every node"]) from error
    if not callable(found):
        raise ConfigError([f"{place} is {found!r}; a function of prompt, reference and answer is wanted"])
    return found
