"""What the first run would wait for, done at installation: ``python -m bs_cluster.training.prewarm CONFIG``.

Compiles the one operation that DeepSpeed builds at first use on a CPU (needs gcc and ninja), and unpacks the
config's base model if it is an embedded one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from bs_cluster.base import prepare_base
from bs_cluster.config.load import load_config


def compile_operations() -> None:
    """Builds DeepSpeed's shared-memory all-reduce; nothing to do where there is a GPU."""
    if torch.cuda.is_available():
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.accelerator import get_accelerator  # noqa: PLC0415  # chooses its accelerator when imported

    accelerator: Any = get_accelerator()
    builder = accelerator.create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        builder.load(verbose=False)


if __name__ == "__main__":
    compile_operations()
    prepare_base(load_config(sys.argv[1]).base)
