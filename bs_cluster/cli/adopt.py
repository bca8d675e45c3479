"""Take over stacks that the published scripts of the paper wrote: a domain's ``.pt`` files, in the order of its rounds,
become one PEFT adapter of this project, which PeftModel.from_pretrained loads and ``set_adapter`` fires. Nothing in the
files is executed. They are not committed to a campaign: what judged them there is not known."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from bs_cluster.adapter_format import parse_key
from bs_cluster.cli import places
from bs_cluster.cli.output import Output
from bs_cluster.errors import UsageError

HELP = "turn stacks of the paper's published scripts (.pt) into a PEFT adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE.pt", help="the domain's stacks, round by round")
    parser.add_argument("--domain", required=True, metavar="DOMAIN", help="what the domain is called")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="a folder that is new or empty")
    parser.add_argument(
        "--base", default="google/gemma-3-12b-it", metavar="MODEL", help="that they were trained on (%(default)s)"
    )
    parser.add_argument("--alpha", type=float, default=16.0, metavar="X", help="lora_alpha, not in the files (16)")
    parser.add_argument("--top-k", type=int, default=2, metavar="K", help="experts of a token, not in the files (2)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    folder, files = places.new_folder(arguments.to), [Path(file) for file in arguments.files]
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file} is no file")
    if not 0 < arguments.alpha < math.inf or arguments.top_k < 1:
        raise UsageError(f"--alpha {arguments.alpha:g}, --top-k {arguments.top_k}: both are finite and above 0")
    from bs_cluster.export.published import adopt  # noqa: PLC0415  # torch

    found = adopt(files, folder, arguments.domain, arguments.base, arguments.alpha, arguments.top_k)
    value = {
        "folder": str(folder),
        "domain": arguments.domain,
        "rounds": len(files),
        "sites": len({parse_key(key)[0] for key in found.tensors}),
        "experts": found.experts,
        "rank": found.rank,
    }
    rounds = f"{len(files)} round{'s' * (len(files) > 1)} of {found.experts} experts of rank {found.rank}"
    output.show(value, f"{folder}: {arguments.domain}, {rounds} on {value['sites']} projections of {arguments.base}")
    return 0
