"""What is claimed, measured against what a user would do instead; writes docs/EVIDENCE.md.

    python -m benchmarks.evidence --campaigns stacks_store:embedded stacks_store:embedded1 stacks_store:embedded2
    python -m benchmarks.evidence --variants stacks_store:one_round      # run with other settings than those shipped
    python -m benchmarks.evidence                     # the page and its figures alone, from results that are there

A campaign is named by its store and its name, and is finished; its store is only read. What must be chosen for rivals
is chosen on validation rows of the first one that is ever named. Results lie in --results, trained LoRAs in --work: the
same command goes on where it was interrupted, and begins anew with a campaign that was run anew.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from bs_cluster.quiet import quieten

ROOT = Path(__file__).parents[2]


def main() -> None:
    quieten()
    arguments = _arguments()
    # Late, so that libraries are quiet from the start.
    import torch  # noqa: PLC0415

    from benchmarks.__main__ import machine_name  # noqa: PLC0415
    from benchmarks.evidence import instead, page, variants  # noqa: PLC0415
    from benchmarks.evidence.campaign import Campaign  # noqa: PLC0415

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    until = time.monotonic() + arguments.seconds
    results = arguments.results / "instead"
    for named in arguments.campaigns:
        campaign = Campaign.named(named)
        name = campaign.config.campaign

        def say(text: str, name: str = name) -> None:
            print(f"[{time.strftime('%H:%M:%S')}] {name:<12} {text}", flush=True)

        choices = instead.choose(campaign, arguments.results / "choices.json", arguments.work, say)
        instead.measure(campaign, results / f"{name}.json", arguments.work, choices, arguments.only, until, say)
    for named in arguments.variants:
        variant = variants.of_campaign(Campaign.named(named), arguments.shipped, machine_name())
        variants.save(variant, arguments.results / "variants")
        print(f"{variant.campaign}: {', '.join(variant.settings)}")
    page.write(arguments.results, arguments.docs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.splitlines()[0])
    parser.add_argument("--campaigns", nargs="*", default=[], help="store:name of finished campaigns")
    parser.add_argument("--variants", nargs="*", default=[], help="store:name of campaigns run with other settings")
    parser.add_argument(
        "--shipped",
        type=Path,
        default=ROOT / "jobs" / "configs" / "embedded.yaml",
        help="the settings they differ from",
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "evidence" / "results")
    parser.add_argument("--work", type=Path, default=ROOT / ".runs" / "evidence", help="folder for trained LoRAs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of EVIDENCE.md and images/")
    parser.add_argument(
        "--only", nargs="*", default=[], help="of what there is to try, this alone: pooled, lora:chat, …"
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="begin nothing later than that; go on another time"
    )
    parser.add_argument("--threads", type=int, default=0, help="torch threads; as found by torch if 0")
    return parser.parse_args()


if __name__ == "__main__":
    main()
