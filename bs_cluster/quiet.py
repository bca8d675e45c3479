"""What a process of ours is started with: libraries' chatter kept out of what people read, and freed memory kept."""

from __future__ import annotations

import logging
import os
import sys
import warnings

CHATTY = (
    "deepspeed",
    "DeepSpeed",
    "transformers",
    "accelerate",
    "torch.distributed",
    "bitsandbytes",
    "peft",
    "trl",
    "lm_eval",
)

# For a process's environment. glibc gives every freed tensor of more than 32 MiB back to the kernel, and page-faults it
# in again a moment later: a third of a CPU step's time on a busy virtual machine.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 29),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


def quieten() -> None:
    """To be called before the libraries are imported. Errors still come through, and all that this project says.
    Without a terminal, as in a submitted job, none of it holds escape codes."""
    if not sys.stdout.isatty():
        os.environ["NO_COLOR"] = "1"
        os.environ.pop("FORCE_COLOR", None)
    quieten_libraries()
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)


def quieten_libraries() -> None:
    """The part of it that touches nothing of a process which is not ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(name).addFilter(_errors)  # DeepSpeed sets its level when it is imported


def _errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def say_on_stderr() -> None:
    """For a server: what this project logs, and others' warnings, with the time."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("bs_cluster").setLevel(logging.INFO)
