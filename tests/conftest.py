"""Settings that libraries read when they are imported: before any test, and inherited by every process of theirs."""

import os
import secrets
from pathlib import Path

import pytest

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # this session's own, for every cluster that a test starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Where tests are dealt to several processes, those of a file go to one, and those of ``e2e``, which share their
    campaigns, all together."""
    group = "e2e" if item.path.parent == Path(__file__).parent / "e2e" else str(item.path)
    item.add_marker(pytest.mark.xdist_group(group))
