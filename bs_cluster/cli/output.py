"""What a command prints: text for a person, or with ``--json`` one JSON value for a program."""

from __future__ import annotations

import json
import sys
from typing import Any

from bs_cluster.errors import BrainstacksError, ConfigError, DataError

FAILED, WRONG_INPUT = 1, 2


class Output:
    """Results go to standard output, errors to standard error."""

    def __init__(self, as_json: bool):
        self.as_json = as_json

    def show(self, value: Any, text: str) -> None:
        """``value`` is JSON-ready; ``text`` says the same to a person."""
        print(json.dumps(value, indent=2, allow_nan=False) if self.as_json else text, flush=True)

    def fail(self, error: BrainstacksError) -> int:
        """Tells an error and returns the exit code: 2 for what the user gave, 1 for everything else."""
        kind = type(error).__name__
        if self.as_json:
            print(json.dumps({"error": kind, "message": str(error)}), file=sys.stderr, flush=True)
        else:
            print(str(error) if isinstance(error, ConfigError) else f"{kind}: {error}", file=sys.stderr, flush=True)
        return WRONG_INPUT if isinstance(error, ConfigError | DataError) else FAILED
