"""What the first run would wait for, done at installation: ``python -m bs_cluster.training.prewarm CONFIG``.

Compiles the one operation that DeepSpeed builds at first use on a CPU (needs gcc and ninja), and unpacks the
config's base model if it is an embedded one.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import _get_build_directory

from bs_cluster.quiet import quieten


def compile_operations() -> None:
    """Builds DeepSpeed's shared-memory all-reduce and loads it into this process; nothing to do where there is a GPU.

    PyTorch guards the build with a file that outlives a killed process, and every later one waits for it without end.
    Workers therefore take turns by a lock that dies with its holder, and whoever has it may clear that file away.
    """
    if torch.cuda.is_available():
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    # The ninja that was installed with us, for every process: another version starts its builds over.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    from deepspeed.accelerator import get_accelerator  # noqa: PLC0415  # chooses its accelerator when imported

    accelerator: Any = get_accelerator()
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is None:
        return
    folder = Path(_get_build_directory(builder.name, verbose=False))
    with (folder / "bs_cluster.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compiles what DeepSpeed builds at first use, unpacks the base model.")
    parser.add_argument("config", help="YAML file whose base model is unpacked, see jobs/configs/")
    asked = parser.parse_args()
    quieten()
    from bs_cluster.base import prepare_base
    from bs_cluster.config.parse import load_config

    compile_operations()
    prepare_base(load_config(asked.config).base)
