"""What a campaign can serve and who is served: ``list`` the bundles, ``compare`` two on the rows that both measured,
``promote`` one to champion, ``rollback`` to the champion before. A promotion is the store's, whatever MLflow shows:
every later sync follows it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import FOUND, Output, table
from bs_cluster.errors import NotInStoreError, UsageError

if TYPE_CHECKING:
    from bs_cluster.promotion import ServedChange
    from bs_cluster.store import Store

HELP = "list and compare what a campaign can serve, promote it, roll back"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("list", help="every bundle with its domains, and who is champion"))
    compare = actions.add_parser("compare", help="what serving B instead of A changes; exit 1 where a group is worse")
    compare.add_argument("former", type=int, metavar="A")
    compare.add_argument("bundle", type=int, metavar="B")
    promote = actions.add_parser("promote", help="make bundle N champion, unless a group is served worse")
    promote.add_argument("bundle", type=int, metavar="N")
    promote.add_argument("--force", action="store_true", help="even so")
    for judged in (compare, promote):
        judged.add_argument(
            "--tolerance",
            type=float,
            metavar="NATS",
            help="per token, by which a group may be worse (default: the config's, else 0.01)",
        )
    rollback = actions.add_parser("rollback", help="serve the champion before this one again")
    rollback.add_argument("--to", type=int, metavar="N", help="bundle N, which was champion once")
    for action in (compare, promote, rollback):
        places.add_campaign(action)


def run(arguments: argparse.Namespace, output: Output) -> int:
    store = places.open_store(arguments)
    return {"list": _list, "compare": _compare, "promote": _promote, "rollback": _rollback}[arguments.action](
        store, arguments, output
    )


def _list(store: Store, arguments: argparse.Namespace, output: Output) -> int:
    found, now = store.bundles(), store.standing()
    roles = {promotion.bundle: promotion.alias for promotion in (now.champion, now.challenger) if promotion}
    rows = [
        (number, len(bundle.stacks), roles.get(number, ""), " ".join(bundle.domains)) for number, _, bundle in found
    ]
    value = {
        "bundles": [
            {"number": number, "digest": digest, "alias": roles.get(number), **bundle.to_dict()}
            for number, digest, bundle in found
        ],
        "promotions": [promotion.to_dict() for promotion in store.promotions()],
    }
    told = [f"{p.alias}: {p.reason} ({p.by})" for p in (now.champion, now.challenger) if p]
    output.show(value, "\n".join([table(("bundle", "stacks", "", "domains"), rows), *told]))
    return 0


def _compare(store: Store, arguments: argparse.Namespace, output: Output) -> int:
    change = _change(store, arguments, arguments.former, arguments.bundle)
    _show(output, change, {}, [])
    return FOUND if change.worse else 0


def _promote(store: Store, arguments: argparse.Namespace, output: Output) -> int:
    from bs_cluster.promotion import HAND, decide  # noqa: PLC0415  # numpy and pyarrow
    from bs_cluster.records import CHAMPION  # noqa: PLC0415

    number, champion = places.bundle_of(store, arguments.bundle)[0], store.standing().champion
    if champion is not None and champion.bundle == number:
        raise UsageError(f"bundle {number} is champion already")
    change, reason = None, "by hand"
    if champion is not None and not arguments.force:
        change = _change(store, arguments, champion.bundle, number)
        decision = decide("guarded", change)
        if decision.alias != CHAMPION:
            told = f"bundle {champion.bundle} stays champion: {decision.reason}. Serve it all the same with --force"
            _show(output, change, {"promoted": False, "reason": decision.reason}, [told])
            return FOUND
        reason = f"by hand: {decision.reason}"
    elif champion is not None:
        reason = f"by hand, in the place of bundle {champion.bundle}, whatever it loses"
    promotion = store.promote(number, CHAMPION, HAND, reason)
    told = [f"bundle {number} is champion; MLflow follows with: bs_cluster registry sync"]
    if change is None:
        output.show({"promoted": True, **promotion.to_dict()}, told[0])
    else:
        _show(output, change, {"promoted": True, **promotion.to_dict()}, told)
    return 0


def _rollback(store: Store, arguments: argparse.Namespace, output: Output) -> int:
    from bs_cluster.promotion import ROLLBACK  # noqa: PLC0415  # numpy and pyarrow
    from bs_cluster.records import CHAMPION  # noqa: PLC0415

    now = store.standing()
    former = [promotion.bundle for promotion in now.former]
    if now.champion is None or not former:
        raise NotInStoreError(f"campaign {store.campaign!r} had no champion before this one; nothing to roll back to")
    target = former[-1] if arguments.to is None else arguments.to
    if target not in former:
        raise UsageError(f"bundle {target} was no champion before bundle {now.champion.bundle}; those were {former}")
    promotion = store.promote(target, CHAMPION, ROLLBACK, f"rolled back from bundle {now.champion.bundle}")
    output.show(
        promotion.to_dict(), f"bundle {target} is champion again; MLflow follows with: bs_cluster registry sync"
    )
    return 0


def _change(store: Store, arguments: argparse.Namespace, former: int, bundle: int) -> ServedChange:
    from bs_cluster.campaign.promote import compare  # noqa: PLC0415  # numpy and pyarrow
    from bs_cluster.promotion import TOLERANCE  # noqa: PLC0415

    tolerance = arguments.tolerance
    if tolerance is None:
        tolerance = places.config_of(arguments).promotion.tolerance if arguments.config else TOLERANCE
    if not tolerance >= 0:
        raise UsageError(f"--tolerance {tolerance}: nats per token, 0 or more")
    before, after = (places.bundle_of(store, number)[2] for number in (former, bundle))
    return compare(store, before, after, tolerance)


def _show(output: Output, change: ServedChange, more: dict, lines: list[str]) -> None:
    """The report's own table of the finding, then ``lines``."""
    if output.as_json:
        output.show({**more, "change": change.to_dict()}, "")
        return
    from bs_cluster.report.findings import served_no_worse  # noqa: PLC0415  # rich
    from bs_cluster.report.terminal import findings_table, terminal_console  # noqa: PLC0415

    found = findings_table([served_no_worse(change, None)])
    terminal_console().print(found or f"bundles {change.against} and {change.bundle} have no measured row in common")
    for line in lines:
        print(line)
