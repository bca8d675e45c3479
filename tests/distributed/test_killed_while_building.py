"""A worker killed while DeepSpeed's operation is built or loaded must not leave the next one waiting for ever."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LOAD = "from bs_cluster.training.prewarm import compile_operations; compile_operations()"


def test_what_it_left_locked_is_cleared_away(tmp_path):
    built = Path(_get_build_directory("deepspeed_shm_comm", verbose=False))
    shutil.copytree(built, tmp_path / built.name)  # with its times: nothing is compiled again
    left_behind = tmp_path / built.name / "lock"
    left_behind.touch()
    subprocess.run(
        [sys.executable, "-c", LOAD],
        env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        timeout=180,
        check=True,
    )
    assert not left_behind.exists()
