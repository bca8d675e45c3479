"""Serve a campaign in replicas: ``ray job submit -- python jobs/serve.py --replicas 1:4 --campaign NAME --store URI``.

What ``bs_cluster serve`` does, two replicas by default. ``ray job stop`` lets running answers end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bs_cluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", "--replicas", "2", *sys.argv[1:]]))
