"""Answer prompts from a campaign's bundle, routed: ``python jobs/generate.py --campaign embedded "prompt"``.

What ``bs_cluster generate`` does, with this checkout's store by default.
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
    sys.exit(main(["generate", *sys.argv[1:]]))
