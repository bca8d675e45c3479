"""``python -m bs_cluster`` is the command ``bs_cluster``: of use where its script is not on the PATH."""

import sys

from bs_cluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
