"""Whether this cluster is fit for a campaign, node by node: versions and code, store, MLflow, GPUs and CPUs, disk,
compiler, token, clocks, addresses, base and rows. Without --address, RAY_ADDRESS or a job around it, this machine
alone. A green line a check, or one that says what to do; exit 1 if there is such a one."""

from __future__ import annotations

import argparse

from bs_cluster.cli import places
from bs_cluster.cli.output import FOUND, Output

HELP = "whether this cluster is fit for a campaign, node by node"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    places.add_config(parser, required=True)
    parser.add_argument("--address", metavar="RAY", help="Ray's, such as auto or HEAD:6379 (default: RAY_ADDRESS)")


def run(arguments: argparse.Namespace, output: Output) -> int:
    config = places.config_of(arguments)
    from bs_cluster.doctor.checks import healthy  # noqa: PLC0415  # Ray, torch and MLflow
    from bs_cluster.doctor.examine import examine, named_address  # noqa: PLC0415

    checks = examine(config, arguments.address or named_address())
    sound = healthy(checks)
    if output.as_json:
        output.show({"healthy": sound, "checks": [check.to_dict() for check in checks]}, "")
    else:
        from bs_cluster.doctor.show import show  # noqa: PLC0415  # rich

        show(checks)
    return 0 if sound else FOUND
