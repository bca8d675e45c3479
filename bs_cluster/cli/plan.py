"""What a campaign will take, from its config alone: parameters, memory of a worker by part and ZeRO stage, steps and
tokens, outcomes, bytes, hours and money, and what does not fit with the settings to change. It needs no GPU and loads
no weights. Exit 1 if something does not fit."""

from __future__ import annotations

import argparse
import os

from bs_cluster.cli import places
from bs_cluster.cli.output import FOUND, Output
from bs_cluster.errors import UsageError

HELP = "what a campaign will take, and whether it fits, before anything is started"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_config(parser, required=True)
    parser.add_argument(
        "--on", metavar="NODE", help="a node of the hardware file, such as 1xL4 (default: 8xH100; cpu without use_gpu)"
    )
    parser.add_argument("--hardware", metavar="FILE", help="your copy of planning/hardware.yaml, with your own figures")
    parser.add_argument(
        "--row-tokens", type=int, metavar="N", help="how long rows are in the mean, for time (default: data.max_length)"
    )
    parser.add_argument("--markdown", action="store_true", help="as tables for a page")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.row_tokens is not None and arguments.row_tokens < 1:
        raise UsageError(f"--row-tokens {arguments.row_tokens}: at least one token a row")
    config = places.config_of(arguments)
    from bs_cluster.planning.hardware import default_node, hardware  # noqa: PLC0415  # yaml

    on = hardware(arguments.on or default_node(config.training.use_gpu), arguments.hardware)
    if bool(on.node.gpus) != config.training.use_gpu:
        way = "training.use_gpu=false" if config.training.use_gpu else "training.use_gpu=true"
        raise UsageError(f"--on {on.node.name} and the config do not agree on GPUs; set {way}, or name another node")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # a library that looks for one says so on standard output
    from bs_cluster.planning.plan import make_plan  # noqa: PLC0415  # torch and transformers

    plan = make_plan(config, on, arguments.row_tokens)
    if output.as_json:
        output.show(plan.to_dict(), "")
    else:
        from bs_cluster.planning.tables import markdown, show  # noqa: PLC0415  # rich

        print(markdown(plan)) if arguments.markdown else show(plan)
    return FOUND if plan.misfits or (plan.room.full is not None and plan.room.full <= len(config.domains)) else 0
