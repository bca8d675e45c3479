"""The campaign's job: ``ray job submit --working-dir . -- python jobs/outer_loop.py --config CONFIG [key=value …]``.

What ``bs_cluster run`` does. Exit codes: 0 done, 1 failed, 2 the configuration is wrong (nothing was connected to) or
its data are, 130 or 143 stopped by a signal.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bs_cluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
