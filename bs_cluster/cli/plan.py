"""What a campaign will take, from its config alone: parameters, memory of a worker by part and ZeRO stage, steps and
tokens, outcomes, bytes, hours and money, and what does not fit with the settings to change. It needs no GPU and loads
no weights. Exit 1 if something does not fit."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bs_cluster.cli import places
from bs_cluster.cli.output import FOUND, Output
from bs_cluster.errors import UsageError

if TYPE_CHECKING:
    from bs_cluster.config import CampaignConfig
    from bs_cluster.planning.hardware import Hardware

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
    parser.add_argument(
        "--completion-tokens",
        type=int,
        metavar="N",
        help="how many of them are learned and scored (default: all but one)",
    )
    parser.add_argument("--scale", action="store_true", help="the schedule on 8 to 512 GPUs, and what limits it")
    parser.add_argument(
        "--losses", type=float, default=0.0, metavar="N", help="with --scale: times a day that each node is lost"
    )
    parser.add_argument("--no-notice", action="store_true", help="with --losses: no checkpoint is written before")
    parser.add_argument("--markdown", action="store_true", help="as tables for a page")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.row_tokens is not None and arguments.row_tokens < 2:
        raise UsageError(f"--row-tokens {arguments.row_tokens}: at least two tokens a row, of which one is learned")
    if arguments.losses < 0 or (arguments.losses and not arguments.scale):
        raise UsageError(f"--losses {arguments.losses:g}: how often a node is lost, with --scale")
    if arguments.no_notice and not arguments.losses:
        raise UsageError("--no-notice: of which losses? say how many with --losses")
    config = places.config_of(arguments)
    learned, whole = arguments.completion_tokens, arguments.row_tokens or config.data.max_length
    if learned is not None and not 1 <= learned < whole:
        raise UsageError(f"--completion-tokens {learned}: at least one, and fewer than --row-tokens, here {whole}")
    from bs_cluster.planning.hardware import default_node, hardware  # noqa: PLC0415  # yaml

    on = hardware(arguments.on or default_node(config.training.use_gpu), arguments.hardware)
    if bool(on.node.gpus) != config.training.use_gpu:
        way = "training.use_gpu=false" if config.training.use_gpu else "training.use_gpu=true"
        raise UsageError(f"--on {on.node.name} and the config do not agree on GPUs; set {way}, or name another node")
    from bs_cluster.planning.plan import make_plan  # noqa: PLC0415  # torch and transformers

    if arguments.scale:
        return _scale(arguments, config, on, output)
    plan = make_plan(config, on, arguments.row_tokens, arguments.completion_tokens)
    if output.as_json:
        output.show(plan.to_dict(), "")
    else:
        from bs_cluster.planning.tables import markdown, show  # noqa: PLC0415  # rich

        print(markdown(plan)) if arguments.markdown else show(plan)
    return FOUND if plan.misfits or (plan.room.full is not None and plan.room.full <= len(config.domains)) else 0


def _scale(arguments: argparse.Namespace, config: CampaignConfig, on: Hardware, output: Output) -> int:
    if not on.node.gpus:
        raise UsageError(f"--scale --on {on.node.name}: it counts GPUs; name a node that has some")
    from bs_cluster.planning.plan import Planner  # noqa: PLC0415  # torch and transformers
    from bs_cluster.planning.schedule import Losses, make_scale  # noqa: PLC0415

    planner = Planner(config, on, arguments.row_tokens, arguments.completion_tokens)
    scale = make_scale(planner, Losses(arguments.losses, not arguments.no_notice))
    if output.as_json:
        output.show(scale.to_dict(), "")
    else:
        from bs_cluster.planning.schedule_tables import markdown, show  # noqa: PLC0415  # rich

        print(markdown(scale, planner)) if arguments.markdown else show(scale, planner)
    return 0
