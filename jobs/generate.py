"""Answer prompts from a campaign's newest bundle, routed: ``python jobs/generate.py --campaign embedded "prompt"``.

Shows which domains fired and how strongly. ``--isolated code``, ``--ungated`` and ``--base`` answer otherwise, for
comparison; ``--compare`` answers all ways. Exit codes: 0 done, 1 failed, 2 a wrong argument.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bs_cluster.campaign.console import fail  # noqa: E402  # after the path is set, here and below
from bs_cluster.errors import BrainstacksError, ConfigError, NotInStoreError  # noqa: E402
from bs_cluster.quiet import quieten  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", required=True)
    parser.add_argument("--store", default=str(ROOT / "stacks_store"), help="store URI (default: this checkout's)")
    parser.add_argument("--registry", metavar="URI", help="take the champion that this MLflow names, and its store")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--isolated", metavar="DOMAIN", action="append", help="fire this domain alone (repeat for more)")
    way.add_argument("--ungated", action="store_true", help="fire every domain at full strength")
    way.add_argument("--base", action="store_true", help="the base model alone")
    way.add_argument("--compare", action="store_true", help="routed, each domain alone, ungated and base")
    parser.add_argument("prompts", nargs="+")
    quieten()
    try:
        return answer(parser.parse_args())
    except ConfigError as error:
        return fail(str(error), 2)
    except BrainstacksError as error:
        return fail(f"{type(error).__name__}: {error}", 1)


def answer(arguments: argparse.Namespace) -> int:
    from bs_cluster.serving.runtime import BundleRuntime  # noqa: PLC0415  # seconds to import; wrong usage is told first
    from bs_cluster.store.store import Store  # noqa: PLC0415

    if arguments.registry:
        from bs_cluster.registry import champion_bundle  # noqa: PLC0415  # MLflow, only where it is asked

        uri, digest = champion_bundle(arguments.registry, arguments.campaign)
        store = Store(uri, arguments.campaign)
        bundle = store.bundle(digest)
    else:
        store = Store(arguments.store, arguments.campaign)
        bundles = store.bundles()
        if not bundles:
            raise NotInStoreError(
                f"campaign {arguments.campaign!r} has no bundle in {store.uri}; train it (make run) or name --store"
            )
        bundle = bundles[-1][2]
    with tempfile.TemporaryDirectory() as folder:
        runtime = BundleRuntime(store, bundle, Path(folder), arguments.device)
    rows = len(arguments.prompts)
    ways = {
        "base": runtime.fixed_gates([], rows),
        "ungated": runtime.fixed_gates(runtime.domains, rows),
        "routed": None,
    }
    if arguments.compare:
        ways = {domain: runtime.fixed_gates([domain], rows) for domain in runtime.domains} | ways
    elif arguments.isolated:
        ways = {"+".join(arguments.isolated): runtime.fixed_gates(arguments.isolated, rows)}
    else:
        chosen = "ungated" if arguments.ungated else "base" if arguments.base else "routed"
        ways = {chosen: ways[chosen]}
    for name, weights in ways.items():
        answers = runtime.answer(arguments.prompts, weights, arguments.max_new_tokens)
        for prompt, found in zip(arguments.prompts, answers, strict=True):
            fired = ", ".join(f"{domain} {weight:.2f}" for domain, weight in found.gates.items() if weight > 0)
            print(f"[{name}]  {fired or 'no domain fires'}\n> {prompt}\n{found.text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
