"""Stacks of the paper's published scripts: read without executing anything, the same function, or refused in words."""

from __future__ import annotations

import contextlib
import math
import pickle
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from stack_kit import FACTORIES, random_ids

import bs_cluster.stacks  # noqa: F401  # makes the method known to PEFT
from bs_cluster.cli.main import main
from bs_cluster.errors import DataError
from bs_cluster.export.published import adopt, read_published

EXPERTS, RANK, TOP_K, ALPHA = 4, 3, 2, 16.0
IDS = random_ids(2, 7)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def published(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """What their ``save_stack`` keeps of a stack on this model."""
    torch.manual_seed(seed)
    state = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            inputs, outputs = module.in_features, module.out_features
            for expert in range(EXPERTS):
                state[f"{name}.active_stack.experts.{expert}.A.weight"] = torch.randn(RANK, inputs) * 0.1
                state[f"{name}.active_stack.experts.{expert}.B.weight"] = torch.randn(outputs, RANK) * 0.1
            state[f"{name}.active_stack.router.weight"] = torch.randn(EXPERTS, inputs)
            state[f"{name}.active_stack.noise_linear.weight"] = torch.zeros(EXPERTS, inputs)
    return state


def theirs(state: dict[str, torch.Tensor], site: str, x_BTI: torch.Tensor) -> torch.Tensor:
    """Their delta at a site, by its definition: softmax over the two best experts of each token."""

    def of(part: str) -> torch.Tensor:
        return state[f"{site}.active_stack.{part}.weight"]

    best, place = (x_BTI @ of("router").T).topk(TOP_K, dim=-1)
    gates_BTK = best.softmax(dim=-1)
    deltas = torch.stack([x_BTI @ of(f"experts.{e}.A").T @ of(f"experts.{e}.B").T for e in range(EXPERTS)], dim=-2)
    chosen = deltas.gather(-2, place.unsqueeze(-1).expand(*place.shape, deltas.shape[-1]))
    return (gates_BTK.unsqueeze(-1) * chosen).sum(dim=-2) * ALPHA / math.sqrt(RANK)


@pytest.fixture
def files(tmp_path):
    """Two rounds of a domain, and what is in them."""
    states = [published(FACTORIES["llama"](), seed) for seed in (1, 2)]
    paths = [tmp_path / f"math_r{number}.pt" for number in (1, 2)]
    for state, path in zip(states, paths, strict=True):
        torch.save(state, path)
    return paths, states


@torch.no_grad()
def test_answers_are_those_of_their_own_forward(files, tmp_path):
    paths, states = files
    model = FACTORIES["llama"]().double().eval()
    bare = model(input_ids=IDS).logits
    exact = [{key: tensor.double() for key, tensor in state.items()} for state in states]
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS:
            module.register_forward_hook(
                lambda _, inputs, out, name=name: out + sum(theirs(state, name, inputs[0]) for state in exact)
            )
    wanted = model(input_ids=IDS).logits
    adopt(paths, tmp_path / "math", "math", "tiny", ALPHA, TOP_K)
    adopted = PeftModel.from_pretrained(FACTORIES["llama"](), tmp_path / "math").double().eval()
    torch.testing.assert_close(adopted(input_ids=IDS).logits, wanted, rtol=1e-8, atol=1e-8)
    assert (wanted - bare).abs().max() > 0.1


def test_the_command_says_what_it_took_over(files, tmp_path, capsys):
    paths, states = files
    words = ["adopt", *map(str, paths), "--domain", "math", "--base", "tiny", "--to", str(tmp_path / "out")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "math, 2 rounds of 4 experts of rank 3" in told
    assert f"on {len({key.partition('.active_stack')[0] for key in states[0]})} projections of tiny" in told
    assert main(words) == 2, "the folder is not empty now"


class Planted:
    """A pickle that would run something."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_nothing_in_a_file_is_executed(tmp_path):
    trace, file = tmp_path / "ran", tmp_path / "stack.pt"
    torch.save({"x": Planted(trace)}, file)
    with pytest.raises(DataError, match="tensors alone"):
        read_published(file)
    file.write_bytes(pickle.dumps(Planted(trace)))
    with pytest.raises(DataError, match="tensors alone"):
        read_published(file)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state, key: state.pop(f"{key}.experts.1.B.weight"), "not whole"),
        (
            lambda state, key: state.update({f"{key}.experts.1.A.weight": torch.zeros(RANK + 1, 8)}),
            "differ|go together",
        ),
        (lambda state, key: state[f"{key}.router.weight"].fill_(math.nan), "NaN or Inf"),
        (lambda state, key: state.update({f"{key}.experts.1.A.weight": torch.zeros(8)}), "no matrices"),
        (lambda state, key: state.update({"optimizer": torch.zeros(1)}), "'optimizer' is no tensor of a published"),
        (lambda state, key: state.clear(), "holds no stack"),
    ],
)
def test_what_is_not_whole_is_refused_by_name(files, tmp_path, change, told):
    _, (state, _) = files
    change(state, next(iter(state)).partition(".experts")[0])
    torch.save(state, tmp_path / "changed.pt")
    with pytest.raises(DataError, match=told):
        read_published(tmp_path / "changed.pt")


def test_damaged_bytes_are_read_or_refused_in_words(files, tmp_path):
    (path, _), _ = files
    whole, draw, damaged = path.read_bytes(), random.Random(0), tmp_path / "damaged.pt"
    # The pickle, not the tensors: what stands there decides what is built.
    first = whole.index(b"active_stack")
    for _ in range(60):
        held = bytearray(whole)
        held[first + draw.randrange(2000)] = draw.randrange(256)
        damaged.write_bytes(held)
        with contextlib.suppress(DataError):
            read_published(damaged)


def test_a_vision_tower_s_stacks_are_left_out(files, tmp_path):
    _, (state, _) = files
    seen = {f"model.vision_tower.{key}": tensor for key, tensor in state.items()}
    torch.save(state | seen, tmp_path / "both.pt")
    found = read_published(tmp_path / "both.pt")
    assert found.left_out == {"vision_tower"}
    assert len(found.tensors) == 4 * len({key.partition(".active_stack")[0] for key in state})
