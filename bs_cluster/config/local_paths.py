"""What a campaign reads from this machine's disk, looked for before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

from bs_cluster.config.conflicts import shown
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.config.sources import FileSource


def missing_inputs(config: CampaignConfig) -> list[str]:
    """A line for each source file and base folder that is not there. Paths are looked up where this process runs."""
    lines = [
        f"{key}.path = {shown(source.path)}: no file matches in {os.getcwd()}; mend it, or add the file"
        for key, source in config.sources().items()
        if isinstance(source, FileSource) and not source.files()
    ]
    model = config.base.model
    if model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().is_dir():
        lines.append(f"base.model = {shown(model)}: no such folder; mend it, or name a base of the Hub")
    return lines
