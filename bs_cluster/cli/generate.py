"""Answer prompts from a campaign's bundle, routed, and show which domains fired and how strongly."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import ConfigError

if TYPE_CHECKING:
    from bs_cluster.serving.runtime import BundleRuntime

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
    parser.add_argument("--registry", metavar="URI", help="take the champion that this MLflow names, and its store")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.max_new_tokens < 1:
        raise ConfigError([f"--max-new-tokens {arguments.max_new_tokens}: at least one token must be asked for"])
    if blank := [prompt for prompt in arguments.prompts if not prompt.strip()]:
        raise ConfigError([f"{len(blank)} of {len(arguments.prompts)} prompts are empty; say something"])
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
    """The newest bundle of the store, or the registry's champion, in memory."""
    from bs_cluster.serving.runtime import BundleRuntime  # noqa: PLC0415  # torch and a model; wrong usage is told first
    from bs_cluster.store.store import Store  # noqa: PLC0415

    if arguments.registry:
        from bs_cluster.registry import champion_bundle  # noqa: PLC0415  # MLflow, only where it is asked

        uri, digest = champion_bundle(arguments.registry, arguments.campaign)
        store = Store(uri, arguments.campaign)
        return BundleRuntime(store, store.bundle(digest), arguments.device)
    store = places.open_store(arguments)
    return BundleRuntime(store, places.newest_bundle(store), arguments.device)


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


def fired(gates) -> str:
    return ", ".join(f"{name} {weight:.2f}" for name, weight in gates.items() if weight > 0) or "no domain fires"
