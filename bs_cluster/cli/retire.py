"""Taking domains out of a campaign: ``remove`` one, ``replace`` it by one that trains anew, ``rollback`` to an earlier
round. What is taken, who depends on it and what stays as it is to the bit are told first; the history keeps what was.
"""

from __future__ import annotations

import argparse
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.config import CampaignConfig
    from bs_cluster.records import Retirement
    from bs_cluster.retirement import Request
    from bs_cluster.store import Store

ALL = "all"


def add_arguments(actions: Any) -> None:
    remove = actions.add_parser("remove", help="take a domain out of the campaign and of its config")
    replace = actions.add_parser("replace", help="take a domain out, to be trained anew by the next run")
    rollback = actions.add_parser("rollback", help="take a closed domain's last rounds back")
    for action in (remove, replace, rollback):
        places.add_config(action, required=True)
        action.add_argument("--name", required=True, metavar="DOMAIN")
        action.add_argument("--reason", required=True, metavar="TEXT", help="why, for the history")
        again = f"a dependant to train anew, or {ALL} (repeat); the others are kept"
        action.add_argument("--retrain", action="append", default=[], metavar="DOMAIN", help=again)
        action.add_argument("--withdraw", action="store_true", help="serve no bundle that holds it, from now on")
        action.add_argument("--dry-run", action="store_true", help="show the plan, change nothing")
    for action in (remove, replace):
        action.add_argument("--purge", action="store_true", help="erase its bytes for good too, and withdraw it")
    rollback.add_argument("--to", type=int, metavar="ROUND", help="the round that stays its last (default: one less)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from bs_cluster.config.edit import write_whole  # noqa: PLC0415  # pydantic, pyarrow and torch, here and below
    from bs_cluster.retirement import dependants, plan  # noqa: PLC0415

    config = places.config_of(arguments)
    store, request, edited = places.store_of(config), _request(arguments), _edited(arguments, config)
    now, committed, number = store.live(), store.stacks(), len(store.retirements()) + 1
    retirement = plan(request, number, now, committed)
    if retirement is not None and ALL in arguments.retrain:
        request = dataclasses.replace(request, retrain=tuple(dependants(committed, retirement.stacks)))
        retirement = plan(request, number, now, committed)
    purge = store.erasable(request.domain, retirement) if getattr(arguments, "purge", False) else {}
    value, lines = told(config, store, request, retirement, purge)
    if not arguments.dry_run:
        if retirement is not None:
            store.take_epoch()  # a run that is under way commits nothing any more
            store.retire(retirement)
        if edited is not None:
            write_whole(Path(arguments.config), edited)
        if purge:
            store.erase(request.domain, request.reason, request.when)
    changed = retirement is not None or edited is not None or bool(purge)
    if arguments.dry_run:
        lines.append("nothing is changed (--dry-run)")
    elif changed:
        lines.append(f"done; what is left to do: bs_cluster run --config {arguments.config}")
    else:
        lines.append(f"nothing to do; if it has not run since: bs_cluster run --config {arguments.config}")
    output.show({**value, "written": changed and not arguments.dry_run}, "\n".join(lines))
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    from bs_cluster.records import REMOVED, REPLACED, ROLLED_BACK  # noqa: PLC0415
    from bs_cluster.retirement import Request  # noqa: PLC0415

    purge = getattr(arguments, "purge", False)
    return Request(
        domain=arguments.name,
        fate={"remove": REMOVED, "replace": REPLACED, "rollback": ROLLED_BACK}[arguments.action],
        to=getattr(arguments, "to", None),
        retrain=tuple(name for name in arguments.retrain if name != ALL),
        withdrawn=arguments.withdraw or purge,
        reason=arguments.reason,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _edited(arguments: argparse.Namespace, config: CampaignConfig) -> str | None:
    """The config's text without a domain that is removed, checked; None where it stays as it is."""
    from bs_cluster.config import parse_config, yaml12  # noqa: PLC0415
    from bs_cluster.config.edit import without_domain  # noqa: PLC0415

    listed = arguments.name in {domain.name for domain in config.domains}
    if arguments.action != "remove":
        if not listed:
            raise UsageError(f"{arguments.config} has no domain {arguments.name!r}; put it back, or domains remove")
        return None
    if not listed:
        return None
    edited = without_domain(yaml12.read(Path(arguments.config)), arguments.name, arguments.config)
    parse_config(edited, arguments.set, arguments.config)
    return edited


def told(
    config: CampaignConfig, store: Store, request: Request, retirement: Retirement | None, purge: dict[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """The plan, JSON-ready and in words."""
    from bs_cluster.config import curriculum  # noqa: PLC0415
    from bs_cluster.promotion import standing  # noqa: PLC0415
    from bs_cluster.records import MERGED, REMOVED, ROLLED_BACK  # noqa: PLC0415

    then = store.live(then=retirement)
    stay = list(then.closings)
    trains = [name for name in curriculum(config) if name not in (*then.closings, *then.gone, *then.reopened)]
    outdated, withdrawn = store.out_of_date(then)
    champion = standing(store.promotions(), outdated, outdated if purge else withdrawn).champion
    value = {
        "domain": request.domain,
        "retirement": None if retirement is None else retirement.to_dict(),
        "stay": stay,
        "trains": trains,
        "closes": list(then.reopened),
        "champion": None if champion is None else champion.bundle,
        "erases": purge,
    }
    if retirement is None:
        lines = [f"{request.domain} is {request.fate} already"]
    else:
        lines = [f"{_names(retirement)} retired: {retirement.reason}"]
        for domain, fired in retirement.kept.items():
            beside = f"trained beside {', '.join(fired)}" if fired else "kept out of its directions"
            after = "; kept, with these recorded parents missing" if fired else "; kept"
            lines.append(f"  {domain} {beside}{after}")
        lines += [
            f"  {domain} depends on it and trains anew" for domain in retirement.fates if domain != request.domain
        ]
        if not retirement.kept and len(retirement.fates) == 1:
            lines.append("  no domain depends on it")
        if retirement.fates[request.domain] in (ROLLED_BACK, MERGED):
            left = [ref.stack.name for ref in then.stacks if ref.stack.domain == request.domain]
            lines.append(f"  {request.domain} closes again on {', '.join(left)} and the rows that it has")
        if retirement.fates[request.domain] == REMOVED:
            lines.append("  its directions are free again for domains to come")
        lines.append(f"  alone as they are, to the bit: {', '.join(stay) or 'none'}")
    if trains:
        lines.append(f"  the next run trains {' -> '.join(trains)}")
    if champion is None:
        lines.append("  no bundle is served until the next run has made one")
    elif champion.bundle in outdated:
        lines.append(f"  bundle {champion.bundle} holds it and is served until the next run has made another")
    else:
        lines.append(f"  bundle {champion.bundle} is served")
    if purge:
        lines.append(
            f"  {len(purge)} blobs, {sum(purge.values()):,} bytes, are erased; the history keeps their digests"
        )
    return value, lines


def _names(retirement: Retirement) -> str:
    return ", ".join(ref.stack.name for ref in retirement.stacks) or f"{retirement.domain}, which has no round,"
