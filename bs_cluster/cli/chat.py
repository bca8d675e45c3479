"""Ask a bundle in a terminal, a prompt a line. ``/gates math=1`` fixes the gates, ``/gates`` gives them back to the
meta-router, ``/base`` answers with the base alone; an empty line or Ctrl-D ends it. Every prompt stands for itself."""

from __future__ import annotations

import argparse
import sys

from bs_cluster.cli import generate
from bs_cluster.cli.output import Output
from bs_cluster.errors import ConfigError, UsageError

HELP = "ask a bundle in a terminal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    generate.add_bundle(parser)
    parser.add_argument("--max-new-tokens", type=int, default=48, metavar="N")


def run(arguments: argparse.Namespace, output: Output) -> int:
    runtime = generate.load_bundle(arguments)
    fixed: list[str] | None = None
    if sys.stdin.isatty():
        print(f"{runtime.config.campaign}: {', '.join(runtime.domains)}. /gates DOMAIN=1 …, /base, empty line to end")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if not line:
            return 0
        try:
            if line.startswith("/"):
                fixed = _command(line, runtime.domains)
                continue
            weights_BD = None if fixed is None else runtime.fixed_gates(fixed, 1)
        except (ConfigError, UsageError) as error:
            output.fail(error)
            continue
        answer = runtime.answer([line], weights_BD, arguments.max_new_tokens)[0]
        shown = f"{answer.text}\n  [{generate.fired(answer.gates)}]"
        output.show({"prompt": line, "completion": answer.text, "gates": dict(answer.gates)}, shown)


def _command(line: str, domains: tuple[str, ...]) -> list[str] | None:
    """The domains to fire from now on, None for the meta-router's choice."""
    word, *words = line.split()
    if word == "/base" and not words:
        return []
    if word != "/gates":
        raise UsageError(f"{line!r} is no command; there are /gates [DOMAIN=1 …] and /base")
    asked = [item.partition("=") for item in words]
    if wrong := [name for name, _, _ in asked if name not in domains]:
        raise UsageError(f"domain {wrong[0]!r} is not in the bundle; it has {', '.join(domains)}")
    if odd := [f"{name}={value}" for name, _, value in asked if value not in ("", "0", "1")]:
        raise UsageError(f"{odd[0]}: a gate is 0 or 1")
    return [name for name, _, value in asked if value != "0"] if asked else None
