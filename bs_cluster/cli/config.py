"""Look at a campaign's configuration: ``check`` it, ``show`` it with every default, print its JSON ``schema``."""

from __future__ import annotations

import argparse
import json

from bs_cluster.cli.output import Output

HELP = "check a configuration, show it with every default, print its schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, text in (("check", "tell every problem at once; exit 2 if there is one"), ("show", "all settings, YAML")):
        action = actions.add_parser(name, help=text)
        action.add_argument("config", help="YAML file, see jobs/configs/")
        action.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides")
    actions.add_parser("schema", help="JSON Schema, for editors")


def run(arguments: argparse.Namespace, output: Output) -> int:
    from bs_cluster.config import CampaignConfig, curriculum, load_config, to_yaml  # noqa: PLC0415  # pydantic

    if arguments.action == "schema":
        schema = CampaignConfig.model_json_schema()
        output.show(schema, json.dumps(schema, indent=2))
        return 0
    config = load_config(arguments.config, arguments.overrides)
    if arguments.action == "check":
        order = curriculum(config)
        output.show(
            {"campaign": config.campaign, "curriculum": list(order)},
            f"campaign {config.campaign} is sound: {' -> '.join(order)} on {config.base.model}",
        )
    else:
        output.show(config.model_dump(mode="json"), to_yaml(config).rstrip())
    return 0
