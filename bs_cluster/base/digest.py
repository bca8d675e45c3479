"""Which weights a base has, as one digest: what a stack's manifest holds its base to."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path

from bs_cluster.config.schema import BaseSection
from bs_cluster.errors import BaseModelError
from bs_cluster.records import canonical_json, sha256_hex

RECORDED = "weights.sha256.json"  # written once beside weights that we made ourselves, so that workers need not rehash


def base_digest(folder: str | Path, base: BaseSection) -> str:
    """SHA-256 (hex) over the folder's weight files (name and SHA-256 each) and how they are quantised and computed.

    Raises BaseModelError when the folder holds no safetensors.
    """
    quantization = {
        "quantization": base.quantization,
        "double_quant": base.double_quant and base.quantization != "none",
        "compute_dtype": base.compute_dtype,
    }
    return sha256_hex(canonical_json({"weights": weight_digests(Path(folder)), **quantization}))


def record_weight_digests(folder: Path) -> None:
    """Keep the digests of a finished, never again changed folder beside its weights."""
    (folder / RECORDED).write_bytes(canonical_json(weight_digests(folder)))


def weight_digests(folder: Path) -> dict[str, str]:
    """SHA-256 (hex) of each safetensors file of a folder, by name."""
    recorded = folder / RECORDED
    if recorded.exists():
        return json.loads(recorded.read_bytes())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BaseModelError(f"{folder} holds no *.safetensors; save the base with model.save_pretrained")
    return {file.name: _file_sha256(file) for file in files}


def _file_sha256(file: Path) -> str:
    blob = file.resolve()
    if file.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name  # the Hub's cache names a weight blob by its SHA-256
    stat = blob.stat()
    return file_sha256(blob, stat.st_size, stat.st_mtime_ns)


@functools.cache
def file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 (hex) of a file's bytes, kept for this process while size and time stamp (ns) stay the same."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
