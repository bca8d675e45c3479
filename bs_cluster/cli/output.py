"""What a command prints: text for a person, or with ``--json`` one JSON value for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from bs_cluster.errors import BrainstacksError, ConfigError, DataError, Stopped, UsageError

FOUND, WRONG_INPUT = 1, 2


class Output:
    """Results go to standard output, errors to standard error. Neither holds an escape code that no terminal asked
    for."""

    def __init__(self, as_json: bool):
        self.as_json = as_json

    def show(self, value: Any, text: str) -> None:
        """``value`` is JSON-ready; ``text`` says the same to a person."""
        print(json.dumps(value, indent=2, allow_nan=False) if self.as_json else text, flush=True)

    def fail(self, error: BrainstacksError) -> int:
        """Tells an error and returns the exit code: 2 for what the user gave, 128 and the number for a signal, else
        1."""
        kind = type(error).__name__
        if self.as_json:
            print(json.dumps({"error": kind, "message": str(error)}), file=sys.stderr, flush=True)
        else:
            bare = isinstance(error, ConfigError | DataError | UsageError | Stopped)
            print(str(error) if bare else f"{kind}: {error}", file=sys.stderr, flush=True)
        if isinstance(error, Stopped):
            return 128 + error.number
        return WRONG_INPUT if isinstance(error, ConfigError | DataError | UsageError) else FOUND


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns of text: words to the left, numbers to the right, two blanks between."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    numeric = [all(not isinstance(row[column], str) for row in rows) and bool(rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )
