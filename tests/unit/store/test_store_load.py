"""A stack is loaded from bytes that were just checked, and only if it is whole, finite and the one that is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tiny_history import SITES, commit_round, stack_manifest, stack_tensors, write_files

from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.records import StackId, StackManifest
from bs_cluster.store import Store
from bs_cluster.store.blobs import blob_name


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"), "demo")


def offered(store: Store, folder: Path) -> StackManifest:
    """A manifest of files that are in the store without having been checked as a stack: a forger's."""
    manifest = stack_manifest(store, folder, "chat", 1)
    for entry in manifest.files:
        store.put_file(folder / entry.name)
    return manifest


def test_what_is_committed_is_loaded_to_the_bit(store, tmp_path):
    stored = store.load_stack(store.manifest(commit_round(store, tmp_path / "staged", "chat", 1).manifest))
    assert stored.config["domain"] == "chat"
    wanted = stack_tensors(1)
    assert stored.tensors.keys() == wanted.keys()
    assert all(torch.equal(stored.tensors[key], wanted[key]) for key in wanted)


def test_every_load_looks_at_the_bytes_again(store, tmp_path):
    manifest = store.manifest(commit_round(store, tmp_path / "staged", "chat", 1).manifest)
    store.load_stack(manifest)
    blob = Path(store.uri) / "demo" / blob_name(manifest.file("adapter_model.safetensors").sha256)
    status, data = blob.stat(), bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))  # rot leaves no time stamp
    with pytest.raises(IntegrityError, match="is damaged"):
        store.load_stack(manifest)
    blob.unlink()
    with pytest.raises(NotInStoreError):
        store.load_stack(manifest)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(store, tmp_path, bad):
    tensors = stack_tensors(0)
    tensors[f"{SITES[0]}.stack_A"][0, 0, 0] = bad
    manifest = offered(store, write_files(tmp_path / "bad", tensors=tensors))
    with pytest.raises(IntegrityError, match="stack_A holds NaN or infinity"):
        store.load_stack(manifest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32])
def test_another_type_of_number_is_refused(store, tmp_path, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in stack_tensors(0).items()}
    manifest = offered(store, write_files(tmp_path / "bad", tensors=tensors))
    with pytest.raises(IntegrityError, match="where F32 is wanted"):
        store.load_stack(manifest)


def test_missing_and_renamed_tensors_are_refused(store, tmp_path):
    for name, tensors in {
        "missing": {key: tensor for key, tensor in stack_tensors(0).items() if key != f"{SITES[0]}.stack_B"},
        "renamed": {key.replace("stack_B", "lora_B"): tensor for key, tensor in stack_tensors(0).items()},
        "none": {},
    }.items():
        manifest = offered(store, write_files(tmp_path / name, tensors=tensors))
        with pytest.raises(IntegrityError):
            store.load_stack(manifest)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x05\0\0\0\0\0\0\0[[[[[", b"\x80\x04K\x01.", save({})[:-1]]
)
def test_what_is_no_safetensors_file_is_refused(store, tmp_path, data):
    folder = write_files(tmp_path / "bad")
    (folder / "adapter_model.safetensors").write_bytes(data)
    manifest = offered(store, folder)
    with pytest.raises(IntegrityError):
        store.load_stack(manifest)


def test_the_config_of_another_stack_is_refused(store, tmp_path):
    manifest = offered(store, write_files(tmp_path / "other", stack=StackId("math", 1)))
    with pytest.raises(IntegrityError, match=r"says \{'domain': 'math'\}, its manifest"):
        store.load_stack(manifest)


def test_only_named_files_are_looked_at(store, tmp_path):
    folder = write_files(tmp_path / "staged")
    manifest = stack_manifest(store, folder, "chat", 1)
    store.commit_stack(manifest, folder)
    blobs = Path(store.uri) / "demo" / "blobs" / "sha256"
    for place in blobs.iterdir():
        (place / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
        (place / "adapter_model.safetensors").write_bytes(b"planted")
    out = store.materialize(manifest, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == sorted(entry.name for entry in manifest.files)
    assert json.loads((out / "adapter_config.json").read_text())["domain"] == "chat"
