"""The base's tokenizer, without its weights: light to import, for the tasks that encode rows."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bs_cluster.base.prepare import built_folder, prepare_base
from bs_cluster.config.schema import BaseSection
from bs_cluster.errors import BaseModelError

WANTED_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
UNWANTED_FILES = ["original/*", "consolidated*", "*/*.safetensors"]


def load_tokenizer(base: BaseSection) -> PreTrainedTokenizerBase:
    """The base's tokenizer alone; pads on the right. Raises BaseModelError like ``load_base``."""
    return tokenizer_in(local_folder(prepare_base(base), base), base)


def tokenizer_if_here(base: BaseSection) -> PreTrainedTokenizerBase | None:
    """``load_tokenizer`` where nothing has to be built or downloaded for it, else None."""
    folder = built_folder(base)
    if folder is not None:
        return tokenizer_in(str(folder), base) if folder.is_dir() else None
    name = prepare_base(base)
    if not Path(name).is_dir():
        try:
            name = snapshot_download(name, revision=base.revision, allow_patterns=WANTED_FILES, local_files_only=True)
        except OSError:
            return None
    return tokenizer_in(name, base)


def local_folder(name: str, base: BaseSection) -> str:
    """A Hub name becomes the folder of its snapshot, downloaded where it is not in the cache yet."""
    if Path(name).is_dir():
        return name
    try:
        return snapshot_download(
            name, revision=base.revision, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES
        )
    except OSError as error:  # what every error of the Hub's client is: network, offline, gated, not found
        reason = " ".join(str(error).split())[:200]
        raise BaseModelError(
            f"base.model = {base.model}: the Hub did not give it ({reason}); check the name and the network, "
            "log in with `hf auth login` for a gated model, or name a local folder"
        ) from error


def tokenizer_in(path: str, base: BaseSection) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="right")
    if tokenizer.eos_token_id is None:
        raise BaseModelError(f"base.model = {base.model}: its tokenizer has no eos_token; completions could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
