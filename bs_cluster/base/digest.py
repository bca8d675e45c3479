"""Which base one has, as one digest: what a stack's manifest holds its base to."""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bs_cluster.config.schema import BaseSection
from bs_cluster.errors import BaseModelError
from bs_cluster.records import canonical_json, sha256_hex

# Everything that loading reads: weights, the model's and the generation's configuration, the tokenizer's files.
WEIGHTS = "*.safetensors"
DIGESTED = (WEIGHTS, "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")


def base_digest(folder: str | Path, base: BaseSection) -> str:
    """SHA-256 (hex) over the folder's model and tokenizer files (name and SHA-256 each) and how the weights are
    quantised and computed.

    Every process reads the bytes once; nothing that is written beside them is believed. Raises BaseModelError when
    the folder holds no safetensors.
    """
    quantization = {
        "quantization": base.quantization,
        "double_quant": base.double_quant and base.quantization != "none",
        "compute_dtype": base.compute_dtype,
    }
    return sha256_hex(canonical_json({"files": _file_digests(Path(folder)), **quantization}))


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, kept in this process while inode, size and time stamp stay the same."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


def _file_digests(folder: Path) -> dict[str, str]:
    if not any(folder.glob(WEIGHTS)):
        raise BaseModelError(f"{folder} holds no {WEIGHTS}; save the base with model.save_pretrained")
    files = sorted({file for pattern in DIGESTED for file in folder.glob(pattern)})
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        return dict(zip((file.name for file in files), pool.map(file_sha256, files), strict=True))


@functools.cache
def _sha256(path: Path, inode: int, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
