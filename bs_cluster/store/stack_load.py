"""A committed stack as tensors, from bytes whose digest was just checked. Nothing else in a folder is looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from bs_cluster.adapter_format import CONFIG_NAME, WEIGHTS_NAME
from bs_cluster.errors import IntegrityError
from bs_cluster.records import StackManifest
from bs_cluster.store.adapter_check import check_sites, group_by_site
from bs_cluster.store.blobs import Blobs
from bs_cluster.store.refs import decode

DTYPE = "F32"  # of every stored tensor


@dataclass(frozen=True)
class StoredStack:
    """A PEFT configuration as it is written, and the tensors by their keys in the file, fp32 on the CPU."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def load_stack(manifest: StackManifest, blobs: Blobs) -> StoredStack:
    """Raises ``IntegrityError`` for bytes of another digest, a config of another stack, tensors of another type, kind
    or shape (before any is built), and values that are not finite; ``NotInStoreError`` for a file that is not there."""
    name = manifest.stack.name
    config = decode(blobs.get_entry(manifest.file(CONFIG_NAME)), f"{CONFIG_NAME} of {name}")
    _check_config(config, manifest)
    data = blobs.get_entry(manifest.file(WEIGHTS_NAME))
    what = f"{WEIGHTS_NAME} of {name}"
    _check_header(data, what)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError) as error:
        raise IntegrityError(f"{what} is not a whole safetensors file ({error}); train the round again") from error
    if wrong := [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise IntegrityError(f"{what}: {wrong[0]} holds NaN or infinity; it must not be loaded, train the round again")
    return StoredStack(config, tensors)


def _check_config(config: dict[str, Any], manifest: StackManifest) -> None:
    said = {"domain": manifest.stack.domain, "round": manifest.stack.round, "position": manifest.position}
    if found := {key: config.get(key) for key, value in said.items() if config.get(key) != value}:
        raise IntegrityError(
            f"{CONFIG_NAME} of {manifest.stack.name} says {found}, its manifest {said}: it is another stack's; "
            "train the round again"
        )


def _check_header(data: bytes, what: str) -> None:
    """Kinds, shapes and types of all tensors, from the file's header alone."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]) if length <= len(data) - 8 else None
        entries = {key: value for key, value in header.items() if key != "__metadata__"}  # type: ignore[union-attr]
        shapes = {key: tuple(value["shape"]) for key, value in entries.items()}
        types = {key: value["dtype"] for key, value in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{what} has no safetensors header ({error}); train the round again") from error
    if wrong := {key: dtype for key, dtype in types.items() if dtype != DTYPE}:
        raise IntegrityError(f"{what}: {dict(list(wrong.items())[:3])} where {DTYPE} is wanted; train the round again")
    check_sites(group_by_site(shapes))
