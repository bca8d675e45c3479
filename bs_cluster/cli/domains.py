"""The domains of a campaign: ``list`` them, ``suggest`` what the next could be about, ``add`` one to the campaign's
YAML once its rows have been looked at, ``compress`` one to see what that would cost, ``remove`` or ``replace`` one,
``rollback`` its last rounds. What ``add`` writes trains when the campaign's job runs next."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs_cluster.cli import compress, places, retire, suggest
from bs_cluster.cli.output import Output, table
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.config import CampaignConfig
    from bs_cluster.data.survey import RowsCheck

HELP = "list a campaign's domains; suggest, add, compress, remove, replace one, roll one back"
KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".gz": "jsonl", ".parquet": "parquet"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    places.add_campaign(actions.add_parser("list", help="closed domains and the rounds of an open one"))
    add = actions.add_parser("add", help="look at the rows of a new domain, show the plan, write it into the config")
    places.add_config(add, required=True)
    add.add_argument("--name", required=True, help="lowercase letters, digits and underscores; for ever")
    add.add_argument("--data", required=True, metavar="PATH", help="JSONL or Parquet, a file or a glob")
    add.add_argument("--format", help="how a row becomes prompt and completion (default: prompt_completion)")
    add.add_argument("--after", action="append", default=[], metavar="DOMAIN", help="close this one first (repeat)")
    add.add_argument("--steps", type=int, metavar="N", help="optimizer steps of a round (default: training.steps)")
    add.add_argument("--dry-run", action="store_true", help="show the plan, write nothing")

    suggest.add_arguments(actions)
    compress.add_arguments(actions)
    retire.add_arguments(actions)


def run(arguments: argparse.Namespace, output: Output) -> int:
    return {"list": _list, "add": _add, "suggest": suggest.run, "compress": compress.run}.get(
        arguments.action, retire.run
    )(arguments, output)


def _list(arguments: argparse.Namespace, output: Output) -> int:
    from bs_cluster.retirement import missing_parents, retirement_words  # noqa: PLC0415

    store = places.open_store(arguments)
    closed = store.domains()
    names = {record.domain for record in closed}
    open_stacks = [ref.stack for ref, _ in store.stacks() if ref.stack.domain not in names]
    rows = [
        (
            record.domain,
            f"{sum(outcome.committed for outcome in record.rounds)} of {len(record.rounds)}",
            f"{record.base_loss:.3f}",
            f"{record.isolated:.3f}",
            record.data_counts.get("train", 0),
        )
        for record in closed
    ]
    lines = [table(("domain", "rounds kept", "base", "alone", "train rows"), rows)]
    lines += [f"{stack.domain}: round {stack.round} committed, not closed" for stack in open_stacks]
    lines.append("losses in nats per completion token on the domain's validation rows")
    live = [ref for ref, _ in store.stacks()]
    missing = {manifest.stack.domain: missing_parents(manifest, live) for _, manifest in store.stacks()}
    lines += [f"{domain}: trained beside {', '.join(gone)}, retired since" for domain, gone in missing.items() if gone]
    retired = store.retirements()
    lines += [f"{fact.when[:10]}  {retirement_words(fact)}" for fact in retired]
    value = {
        "closed": [record.to_dict() for record in closed],
        "open": [stack.name for stack in open_stacks],
        "missing": {domain: list(gone) for domain, gone in missing.items() if gone},
        "retirements": [fact.to_dict() for fact in retired],
    }
    output.show(value, "\n".join(lines))
    return 0


def _add(arguments: argparse.Namespace, output: Output) -> int:
    from bs_cluster.base.tokenizer import tokenizer_if_here  # noqa: PLC0415  # torch and transformers, here and below
    from bs_cluster.config import parse_config, yaml12  # noqa: PLC0415
    from bs_cluster.config.edit import with_domain, write_whole  # noqa: PLC0415
    from bs_cluster.config.local_paths import missing_inputs  # noqa: PLC0415
    from bs_cluster.data.survey import check_rows  # noqa: PLC0415
    from bs_cluster.errors import ConfigError  # noqa: PLC0415

    path = Path(arguments.config)
    if arguments.name in {domain.name for domain in places.config_of(arguments).domains}:
        raise UsageError(f"{path} has a domain {arguments.name!r} already; name the new one otherwise")
    edited = with_domain(yaml12.read(path), _entry(arguments), str(path))
    config = parse_config(edited, arguments.set, str(path))
    if missing := missing_inputs(config):
        raise ConfigError(missing)
    check = check_rows(config, arguments.name, tokenizer_if_here(config.base))
    plan = _plan(config, arguments.name, check)
    if not arguments.dry_run:
        write_whole(path, edited)
    done = f"{path} is as it was (--dry-run)" if arguments.dry_run else f"{path} has it; bs_cluster run --config {path}"
    value = {"domain": arguments.name, "rows": check.to_dict(), "plan": plan, "written": not arguments.dry_run}
    output.show(value, "\n".join([*_words(arguments.name, check, plan), done]))
    return 0


def _entry(arguments: argparse.Namespace) -> dict[str, Any]:
    """The new item of ``domains``, as a YAML file would hold it."""
    kind = KINDS.get(Path(arguments.data).suffix)
    if kind is None:
        raise UsageError(f"--data {arguments.data}: the name should end in {', '.join(KINDS)}")
    source = {"kind": kind, "path": arguments.data} | ({"format": arguments.format} if arguments.format else {})
    entry: dict[str, Any] = {"name": arguments.name}
    if arguments.after:
        entry["after"] = arguments.after
    if arguments.steps is not None:
        entry["steps"] = arguments.steps
    return entry | {"sources": [source]}


def _plan(config: CampaignConfig, name: str, check: RowsCheck) -> dict[str, Any]:
    """What the next run will do, as far as it can be known: JSON-ready."""
    from bs_cluster.config import curriculum, effective_domain  # noqa: PLC0415  # pydantic and torch
    from bs_cluster.coordinator.room import claimed_so_far  # noqa: PLC0415
    from bs_cluster.store import Store  # noqa: PLC0415

    store = Store(config.store.uri, config.campaign)
    closed = store.domains()
    names = {record.domain for record in closed}
    if name in {record.domain for record in store.closings()} | {ref.stack.domain for ref, _ in store.every_stack()}:
        raise UsageError(f"campaign {config.campaign} had a domain {name!r} before; name the new one otherwise")
    domain, batch = effective_domain(config, name), config.training.global_batch
    assert domain.steps is not None
    shares = closed[-1].capacity if closed else {}
    if store.retirements():  # a closing speaks of claims that are free again
        shares = claimed_so_far(store).claimed_share()
    return {
        "closed": [record.domain for record in closed],
        "trains": [other for other in curriculum(config) if other not in names],
        "rounds": domain.max_rounds,
        "steps": domain.steps,
        "global_batch": batch,
        "passes": domain.steps * batch / check.counts["train"],
        "free": {width: 1 - share for width, share in shares.items()},
    }


def _words(name: str, check: RowsCheck, plan: dict[str, Any]) -> list[str]:
    counts = check.counts
    split = ", ".join(f"{counts[part]} {part}" for part in ("train", "validation", "sweep"))
    reasons = ("unusable", "empty", "duplicates", "near_duplicates")
    left_out = ", ".join(f"{counts[key]} {key.replace('_', ' ')}" for key in reasons if counts[key])
    lines = [f"{name}: {counts['read']} rows read -> {split}", f"  left out: {left_out or 'none'}"]
    lines += [f"  {count} rows say nearly what a held-out row of {other} says" for other, count in check.near.items()]
    if tokens := check.tokens:
        lines.append(
            f"  tokens a row: {tokens['shortest']} to {tokens['longest']}, median {tokens['median']}; "
            f"{tokens['at_limit']} reach data.max_length"
        )
    else:
        lines.append("  tokens a row: not counted, the base is not on this machine")
    trains = " -> ".join(plan["trains"])
    rounds = "one round" if plan["rounds"] == 1 else f"up to {plan['rounds']} rounds"
    lines.append(
        f"the next run trains {trains}: {rounds} of {plan['steps']} steps for {name}, "
        f"{plan['global_batch']} rows a step, {plan['passes']:.1f} passes over its rows a round"
    )
    if plan["closed"]:
        lines.append(f"closed, and not touched: {', '.join(plan['closed'])}")
    if free := plan["free"]:
        lines.append("free directions: " + ", ".join(f"width {w} {share:.0%}" for w, share in free.items()))
    return lines
