"""A base that changed is another base."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tiny import save_tiny_base

from bs_cluster.base.digest import base_digest
from bs_cluster.config import BaseSection


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return Path(save_tiny_base(tmp_path_factory.mktemp("base"), "gemma3"))


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "base"))


def digest(folder: Path) -> str:
    return base_digest(folder, BaseSection(model=str(folder)))


def test_the_same_files_are_the_same_base_wherever_they_lie(saved, folder):
    assert digest(folder) == digest(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_one_flipped_bit_anywhere_is_another_base(folder, name):
    before = digest(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert digest(folder) != before


def test_what_is_written_beside_the_weights_is_not_believed(folder):
    """A Hub cache names a blob by its digest, and an earlier version kept digests in a file: both can be wrong."""
    before = digest(folder)
    weights = folder / "model.safetensors"
    blob = weights.rename(folder / ("a" * 64))
    weights.symlink_to(blob)
    assert digest(folder) == before
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    assert digest(folder) != before


def test_a_planted_adapter_is_another_base(folder):
    """transformers would load it unasked."""
    before = digest(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert digest(folder) != before


def test_a_file_put_back_is_looked_at_again(folder):
    config = folder / "config.json"
    text, before = config.read_text(), digest(folder)
    config.write_text(text.replace("gemma", "gamma"))
    assert digest(folder) != before
    config.write_text(text)
    os.utime(config, (1, 1))
    assert digest(folder) == before
