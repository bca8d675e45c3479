import sys

from bs_cluster.cli.main import main

sys.exit(main())
