"""Where a campaign's report is."""

from __future__ import annotations

from pathlib import Path


def report_folder(store_uri: str, campaign: str, cache_dir: str) -> Path:
    """Where this machine keeps a campaign's report: beside a local store, else in the user's cache."""
    root = Path(cache_dir).expanduser() / "runs" if "://" in store_uri else Path(store_uri)
    folder = root / campaign / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
