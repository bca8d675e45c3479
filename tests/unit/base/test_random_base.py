"""A base of random weights: the same wherever it is made, whole or not there, and frozen."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import VOCAB
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedTokenizerFast

from bs_cluster.base import random_weights
from bs_cluster.base.digest import base_digest
from bs_cluster.base.load import load_base
from bs_cluster.base.prepare import prepare_base
from bs_cluster.base.tokenizer import tokenizer_if_here
from bs_cluster.config import BaseSection
from bs_cluster.config.conflicts import RANDOM_ARCHITECTURES
from bs_cluster.errors import BaseModelError
from bs_cluster.planning.skeleton import skeleton, weights_of

SIZES = {"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 2, "intermediate": 128, "context": 128, "std": 0.1}
# On a node of its own: other threads, another stream of random numbers.
ELSEWHERE = """
import sys, torch
from bs_cluster.base.prepare import prepare_base
from bs_cluster.base.digest import base_digest
from bs_cluster.config import BaseSection
torch.manual_seed(7)
torch.set_num_threads(2)
for settings in sys.argv[1:]:
    base = BaseSection.model_validate_json(settings)
    print(base_digest(prepare_base(base), base))
"""


def random_base(folder: Path, model: str = "random:llama", quantization: Any = "none", **sizes: Any) -> BaseSection:
    settings = {"model": model, "quantization": quantization, "cache_dir": str(folder), "random": {**SIZES, **sizes}}
    return BaseSection.model_validate(settings)


def weights(base: BaseSection) -> dict[str, torch.Tensor]:
    return load_file(Path(prepare_base(base)) / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> BaseSection:
    return random_base(tmp_path_factory.mktemp("trained"), embeddings="trained", embedding_steps=12)


@pytest.mark.slow
def test_every_node_makes_the_same_base(tmp_path, trained):
    bases = (random_base(Path(trained.cache_dir)), trained)
    elsewhere = [base.model_copy(update={"cache_dir": str(tmp_path)}).model_dump_json() for base in bases]
    node = subprocess.run([sys.executable, "-c", ELSEWHERE, *elsewhere], capture_output=True, text=True, check=True)
    assert node.stdout.split() == [base_digest(prepare_base(base), base) for base in bases]


def test_whoever_comes_while_it_is_made_waits_for_it(tmp_path):
    base = random_base(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        (name,) = set(pool.map(prepare_base, [base] * 3))
    (folder,) = (path for path in (tmp_path / "bases").iterdir() if path.is_dir())
    assert str(folder) == name
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}


def test_any_rank_may_be_the_one_that_makes_it(tmp_path):
    alone, joined = random_base(tmp_path / "alone"), random_base(tmp_path / "joined")
    distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        made = prepare_base(joined)
    finally:
        distributed.destroy_process_group()
    assert base_digest(made, joined) == base_digest(prepare_base(alone), alone)


def test_making_one_leaves_a_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    prepare_base(random_base(tmp_path))
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"std": 0.2}, {"layers": 1}, {"embeddings": "trained", "embedding_steps": 1}]
)
def test_other_settings_are_another_base_beside_it(tmp_path, other):
    bases = [random_base(tmp_path), random_base(tmp_path, **other)]
    folders = [prepare_base(base) for base in bases]
    assert len(set(folders)) == 2
    assert len({base_digest(folder, base) for folder, base in zip(folders, bases, strict=True)}) == 2


def test_a_base_that_could_not_be_finished_is_not_there(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    base = random_base(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", killed)  # the weights are written by then
        with pytest.raises(KeyboardInterrupt):
            prepare_base(base)
    assert not [path for path in (tmp_path / "bases").iterdir() if path.is_dir()]
    assert tokenizer_if_here(base) is None
    prepare_base(base)
    assert tokenizer_if_here(base) is not None


def test_embeddings_alone_learn_and_learn_something(tmp_path, trained):
    frozen, learned = weights(random_base(tmp_path)), weights(trained)
    assert {name for name in frozen if not torch.equal(frozen[name], learned[name])} == {"model.embed_tokens.weight"}
    text = "The following sections describe the standard types that are built into the interpreter."
    losses = []
    for base in (random_base(tmp_path), trained):
        loaded = load_base(base, device="cpu")
        ids = torch.tensor([loaded.tokenizer(text).input_ids])
        assert ids.shape[1] == 1 + len(text.encode())
        with torch.no_grad():
            losses.append(float(loaded.model(input_ids=ids, labels=ids).loss))
    assert losses[1] < losses[0] - 1


@pytest.mark.parametrize("model", ["random:llama", "random:gemma3"])
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_it_loads_like_any_other_base_frozen_and_its_shapes_are_known_before(tmp_path, model, quantization):
    base = random_base(tmp_path, model, quantization)
    known = skeleton(base)
    assert not (tmp_path / "bases").exists(), "a plan needs no weights"
    loaded = load_base(base, device="cpu")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.ref.digest == base_digest(prepare_base(base), base)
    assert loaded.model.get_input_embeddings().weight.shape == (VOCAB, SIZES["hidden"])
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    shapes = [sorted(tuple(part.shape) for part in weights_of(one.model)) for one in (known, loaded)]
    assert shapes[0] == shapes[1]


def test_an_unknown_architecture_is_told_with_those_there_are(tmp_path):
    with pytest.raises(BaseModelError, match="the random bases are random:gemma3, random:llama"):
        prepare_base(random_base(tmp_path, "random:gpt2"))


def test_the_architectures_are_those_that_a_config_may_name():
    assert set(RANDOM_ARCHITECTURES) == set(random_weights.ARCHITECTURES)
