"""How much room the domains closed so far leave at the sites of a model, and when that is too little."""

from __future__ import annotations

from bs_cluster.basis import Basis
from bs_cluster.errors import StackError
from bs_cluster.events import RoomScarce
from bs_cluster.store.store import Store

SCARCE = 0.25  # share of free directions below which a person is told


def claimed_so_far(store: Store) -> Basis:
    """The directions that all closed domains hold together."""
    bases = [record.basis for record in store.domains() if record.basis is not None]
    return Basis.combine([Basis.from_bytes(store.get_bytes(digest)) for digest in bases])


def check_room(basis: Basis) -> RoomScarce | None:
    """The site where this basis leaves the smallest share free, if that is worth a word.

    Raises StackError where it leaves nothing: a stack could learn nothing there.
    """
    entries = list(basis.entries())
    if not entries:
        return None
    side, site, directions_XK = max(entries, key=lambda entry: entry[2].shape[1] / entry[2].shape[0])
    width, held = directions_XK.shape
    if held >= width:
        raise StackError(
            f"earlier domains hold all {width} directions that {site} {'reads' if side == 'input' else 'writes'}, so a "
            "new stack has nothing left to learn in there; take the domains that are not closed yet out of the config "
            "or set null_space.enabled=false for them, or start another campaign with fewer domains or a smaller "
            "null_space.max_share or max_rank"
        )
    free = 1.0 - held / width
    return RoomScarce(site, side, width, free) if free < SCARCE else None


def refuse_without_room(store: Store) -> None:
    """``check_room`` for the driver, before anything is loaded: the records say whether a width is used up, and only
    then are the directions read, to name the site. Raises StackError."""
    if any(share >= 1.0 for record in store.domains() for share in record.capacity.values()):
        check_room(claimed_so_far(store))
