"""MLflow shows what the store decided: runs, model versions and aliases, rebuilt from the store at any time."""

import logging
import os

# MLflow reports its use to its makers from the moment it is imported, unless told before.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from bs_cluster.registry.connection import check_tracking
from bs_cluster.registry.mirror import Registry, SyncReport
from bs_cluster.registry.versions import champion_bundle

for _name in ("mlflow", "alembic"):  # set by MLflow when it is imported: each model saved, each table made, has a line
    logging.getLogger(_name).setLevel(logging.WARNING)

__all__ = ["Registry", "SyncReport", "champion_bundle", "check_tracking"]
