"""Built-in rows are the same in every process, or a campaign that goes on meets other rows."""

import os
import subprocess
import sys

DIGESTS = """
from hashlib import sha256
from bs_cluster.data.builtin import EMBEDDED, embedded_rows
for name in EMBEDDED:
    print(name, sha256(repr(embedded_rows(name, 7)).encode()).hexdigest())
"""


def test_rows_do_not_hang_on_how_a_process_hashes_text():
    children = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (child.communicate(timeout=200)[0].splitlines() for child in children)
    assert all(child.returncode == 0 for child in children)
    assert len(first) > 15
    assert first == second
