"""Evaluate a campaign's bundle on public tasks: ``python jobs/evaluate.py --campaign embedded --tasks arc_easy``.

What ``bs_cluster evaluate`` does, with this checkout's store by default. One process: it needs no cluster.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bs_cluster.cli.main import main  # noqa: E402  # after the path is set, here and below
from bs_cluster.cli.places import STORE_VARIABLE  # noqa: E402

if __name__ == "__main__":
    os.environ.setdefault(STORE_VARIABLE, str(ROOT / "stacks_store"))
    sys.exit(main(["evaluate", *sys.argv[1:]]))
