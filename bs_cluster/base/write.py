"""A model and its tokenizer as a Hugging Face folder, whoever writes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Safetensors, configuration and tokenizer into ``folder``.

    In a process group transformers lets rank 0 alone write, and the others' folders stay without weights. A base is
    made once on each node, by whichever of its ranks comes first.
    """
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
