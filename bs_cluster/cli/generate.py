"""Answer prompts from a campaign's bundle, routed, and show which domains fired and how strongly."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.records import BundleManifest
    from bs_cluster.serving.runtime import BundleRuntime
    from bs_cluster.store import Store

HELP = "answer prompts, routed or under gates of your own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--isolated", metavar="DOMAIN", action="append", help="fire this domain alone (repeat for more)")
    way.add_argument("--ungated", action="store_true", help="fire every domain at full strength")
    way.add_argument("--base", action="store_true", help="the base model alone")
    way.add_argument("--compare", action="store_true", help="routed, each domain alone, ungated and base")
    parser.add_argument("prompts", nargs="+", metavar="PROMPT")


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Arguments that name a bundle and where it runs."""
    places.add_campaign(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--bundle", type=int, metavar="N", help="bundle N (default: the champion)")
    which.add_argument("--registry", metavar="URI", help="the champion that this MLflow names, and its store")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {arguments.max_new_tokens}: at least one token must be asked for")
    if blank := [prompt for prompt in arguments.prompts if not prompt.strip()]:
        raise UsageError(f"{len(blank)} of {len(arguments.prompts)} prompts are empty; say something")
    runtime = load_bundle(arguments)
    found, lines = [], []
    for way, weights_BD in ways(arguments, runtime).items():
        answers = runtime.answer(arguments.prompts, weights_BD, arguments.max_new_tokens)
        for prompt, answer in zip(arguments.prompts, answers, strict=True):
            found.append({"way": way, "prompt": prompt, "completion": answer.text, "gates": dict(answer.gates)})
            lines.append(f"[{way}]  {fired(answer.gates)}\n> {prompt}\n{answer.text}\n")
    output.show(found, "\n".join(lines))
    return 0


def load_bundle(arguments: argparse.Namespace) -> BundleRuntime:
    """The bundle that was asked for, in memory."""
    store, bundle = _found(arguments)
    from bs_cluster.serving.runtime import BundleRuntime  # noqa: PLC0415  # torch and a model; wrong usage is told first

    return BundleRuntime(store, bundle, arguments.device)


def _found(arguments: argparse.Namespace) -> tuple[Store, BundleManifest]:
    if not arguments.registry:
        store = places.open_store(arguments)
        return store, places.bundle_of(store, arguments.bundle)[2]
    from bs_cluster.registry import champion_bundle  # noqa: PLC0415  # MLflow, only where it is asked
    from bs_cluster.store import Store  # noqa: PLC0415

    name = places.name_of(arguments)
    uri, digest = champion_bundle(arguments.registry, name)
    store = Store(uri, name)
    return store, store.bundle(digest)


def ways(arguments: argparse.Namespace, runtime: BundleRuntime) -> dict:
    """Gate weights (B, D) by the name of the way of answering; None lets the meta-router decide."""
    rows = len(arguments.prompts)
    if arguments.isolated:
        return {"+".join(arguments.isolated): runtime.fixed_gates(arguments.isolated, rows)}
    every = {
        "base": runtime.fixed_gates([], rows),
        "ungated": runtime.fixed_gates(runtime.domains, rows),
        "routed": None,
    }
    if arguments.compare:
        return {domain: runtime.fixed_gates([domain], rows) for domain in runtime.domains} | every
    chosen = "ungated" if arguments.ungated else "base" if arguments.base else "routed"
    return {chosen: every[chosen]}


def fired(gates: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in gates.items() if weight > 0) or "no domain fires"
