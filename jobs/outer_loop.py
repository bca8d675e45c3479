"""The campaign's job: ``ray job submit --working-dir . -- python jobs/outer_loop.py --config CONFIG [key=value …]``.

Exit codes: 0 done, 1 failed, 2 the configuration is wrong (nothing was connected to) or its data are, 130 or 143
stopped by a signal.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bs_cluster.campaign.connect import connect
from bs_cluster.campaign.console import Console, fail
from bs_cluster.config.parse import load_config
from bs_cluster.errors import BrainstacksError, ConfigError, DataError, Stopped
from bs_cluster.quiet import quieten


def main() -> int:
    parser = argparse.ArgumentParser(description="Train, route and report a campaign; run again to go on.")
    parser.add_argument("--config", required=True, help="YAML file, see jobs/configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the config")
    arguments = parser.parse_args()
    console = Console()
    quieten()
    try:
        config = load_config(arguments.config, arguments.overrides)
        connect(config)
        from bs_cluster.campaign.run import run_campaign  # noqa: PLC0415  # heavy; wrong settings are told at once

        return run_campaign(config, console)
    except (ConfigError, DataError) as error:
        return fail(str(error), 2)
    except Stopped as stopped:
        return fail(str(stopped), 128 + stopped.number)
    except BrainstacksError as error:
        return fail(f"{type(error).__name__}: {error}", 1)


if __name__ == "__main__":
    sys.exit(main())
