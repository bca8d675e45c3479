"""Look at a campaign's configuration: ``check`` it, ``show`` it with every default, print its JSON ``schema``."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import Output

HELP = "check a configuration, show it with every default, print its schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("check", "tell every problem at once; exit 2 if there is one"), ("show", "all settings, YAML")):
        places.add_config(actions.add_parser(name, help=text), required=True)
    actions.add_parser("schema", help="JSON Schema, for editors")


def run(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.action == "schema":
        from bs_cluster.config.reference import json_schema  # noqa: PLC0415  # pydantic

        print(json_schema())
        return 0
    from bs_cluster.config import curriculum, to_yaml  # noqa: PLC0415  # pydantic

    config = places.config_of(arguments)
    if arguments.action == "check":
        order = curriculum(config)
        output.show(
            {"campaign": config.campaign, "curriculum": list(order)},
            f"campaign {config.campaign} is sound: {' -> '.join(order)} on {config.base.model}",
        )
    else:
        output.show(config.model_dump(mode="json"), to_yaml(config).rstrip())
    return 0
