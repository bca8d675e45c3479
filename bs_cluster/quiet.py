"""Libraries' chatter, kept out of what people read. Call before the libraries are imported."""

from __future__ import annotations

import logging
import os
import warnings

CHATTY = ("deepspeed", "DeepSpeed", "transformers", "accelerate", "torch.distributed", "bitsandbytes", "peft", "trl")


def quieten() -> None:
    """Errors still come through, and so does everything that this project says."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for category in (FutureWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)
