"""``bs_cluster VERB …``. Exit codes: 0 done, 1 something was found or failed, 2 wrong input (nothing was connected to),
130 or 143 stopped by a signal.

Every verb is a module with ``HELP``, ``add_arguments(parser)`` and ``run(arguments, output)``. They import what is
heavy when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from bs_cluster import __version__
from bs_cluster.cli import (
    adopt,
    bundles,
    certify,
    chat,
    config,
    doctor,
    domains,
    evaluate,
    export,
    generate,
    outer_loop,
    plan,
    registry,
    serve,
    store,
)
from bs_cluster.cli.output import Output
from bs_cluster.errors import BrainstacksError, DiskError, UsageError
from bs_cluster.quiet import quieten

VERBS: dict[str, ModuleType] = {
    "plan": plan,
    "doctor": doctor,
    "run": outer_loop,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "domains": domains,
    "bundles": bundles,
    "certify": certify,
    "evaluate": evaluate,
    "export": export,
    "adopt": adopt,
    "store": store,
    "registry": registry,
    "config": config,
}
_OVERRIDE = re.compile(r"(?!-)[\w.-]+=")


def main(argv: Sequence[str] | None = None) -> int:
    """The installed command. ``argv`` without the program's name; the process's own by default."""
    arguments = command_line().parse_args(_overrides_marked(sys.argv[1:] if argv is None else argv))
    output = Output(getattr(arguments, "json", False))
    quieten()
    try:
        return VERBS[arguments.verb].run(arguments, output)
    except BrainstacksError as error:
        return output.fail(error)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "bs_cluster":
            raise
        lacking = f"bs_cluster {arguments.verb} needs {error.name}, which is not installed"
        return output.fail(UsageError(f"{lacking}; a plain install loads adapters: pip install 'bs-cluster[cluster]'"))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if (told := DiskError.of(error)) is None:
            raise
        return output.fail(told)
    except KeyboardInterrupt:
        return 130


def command_line() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="bs_cluster", description="Continual multi-domain fine-tuning: train a campaign and live with it."
    )
    whole.add_argument("--version", action="version", version=f"bs_cluster {__version__}")
    verbs = whole.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        verb = verbs.add_parser(name, help=module.HELP, description=(module.__doc__ or "").replace("``", ""))
        module.add_arguments(verb)
        for leaf in _leaves(verb) if module is not outer_loop else ():
            leaf.add_argument("--json", action="store_true", help="print one JSON value instead of text")
    return whole


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers that a command line can end in: a verb's actions, or the verb itself."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for choices in below:
        for action in choices.values():
            yield from _leaves(action)


def _overrides_marked(argv: Sequence[str]) -> list[str]:
    """``--config FILE a=1 b=2`` as ``--config FILE --set=a=1 --set=b=2``: the overrides end where other words begin."""
    words = list(argv)
    for place, word in enumerate(argv):
        after = place + 2 if word == "--config" else place + 1 if word.startswith("--config=") else len(words)
        while after < len(words) and _OVERRIDE.match(words[after]):
            words[after] = f"--set={words[after]}"
            after += 1
    return words
