"""The null-space constraint is part of the parametrisation: it holds while AdamW steps and in what is stored."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from stack_kit import orthonormal, random_ids, stacked_model, tuner
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bs_cluster.adapter_format import PARTS, tensor_key
from bs_cluster.basis import Basis
from bs_cluster.stacks.adapter_files import write_adapter

LEARNING = "code_r1"


def trained(space: str, steps: int = 6):
    """A model whose learning stack took AdamW steps under random bases; returns it with the bases of both sides."""
    peft = stacked_model("gemma3", ["chat_r1", LEARNING])
    stacks = tuner(peft)
    stacks.fire(["chat_r1"], train=LEARNING)
    output, inputs = {}, {}
    for path, site in zip(stacks.site_names(), stacks.sites, strict=True):
        if space in ("output", "both"):
            output[path] = orthonormal(site.out_features, 9, 1, torch.float32)
        if space in ("input", "both"):
            inputs[path] = orthonormal(site.in_features, 7, 2, torch.float32)
    stacks.confine(Basis(output, inputs))
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
    ids_BT = random_ids(4, 12)
    losses = []
    for _ in range(steps):
        logits_BTV = peft.train()(input_ids=ids_BT).logits
        loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    return peft.eval(), output, inputs


@pytest.mark.parametrize("space", ["output", "input", "both"])
def test_stored_stacks_do_not_touch_the_bases_after_training(tmp_path, space: str):
    peft, output, inputs = trained(space)
    write_adapter(tmp_path, tuner(peft).peft_config[LEARNING], tuner(peft).folded(LEARNING))
    stored = load_file(tmp_path / "adapter_model.safetensors")
    for part, bases in (("stack_B", output), ("stack_A", inputs)):
        for path, basis_XK in bases.items():
            tensor = stored[tensor_key(path, part)]
            assert (tensor @ basis_XK).norm() <= 1e-5 * tensor.norm()
            free = tuner(peft).sites[tuner(peft).site_names().index(path)]
            assert (getattr(free, part)[LEARNING] @ basis_XK).norm() > 1e-2  # the parameter itself is not confined


def test_the_function_trained_is_the_function_stored():
    """Published flaw 4: a projection that acts in training and is dropped at inference."""
    peft, _, _ = trained("both")
    stacks, ids_BT = tuner(peft), random_ids(2, 10, seed=5)
    with torch.no_grad():
        in_training = peft(input_ids=ids_BT).logits
        tensors = stacks.folded(LEARNING)
        unconfined = stacks.sites[0].stack_B[LEARNING].clone()
        stacks.confine(None)
        dropped = peft(input_ids=ids_BT).logits
        for path, site in zip(stacks.site_names(), stacks.sites, strict=True):
            for part in PARTS:
                getattr(site, part)[LEARNING].copy_(tensors[tensor_key(path, part)])
        stored = peft(input_ids=ids_BT).logits
        stacks.fire(["chat_r1", LEARNING])
        frozen = peft(input_ids=ids_BT).logits
    assert not torch.equal(stacks.sites[0].stack_B[LEARNING], unconfined)
    torch.testing.assert_close(stored, in_training, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frozen, in_training, rtol=1e-5, atol=1e-5)
    assert (dropped - in_training).abs().max() > 1e-3


def test_what_is_written_lies_outside_the_claimed_directions():
    """On activations, not weights: a confined stack's delta has no part along the basis at any token."""
    peft, output, _ = trained("output", steps=3)
    stacks = tuner(peft)
    stacks.fire([], train=LEARNING)
    for path, site in zip(stacks.site_names(), stacks.sites, strict=True):
        x_TI = torch.randn(20, site.in_features)
        delta_TO = site(x_TI) - site.base_layer(x_TI)
        assert (delta_TO @ output[path]).abs().max() < 1e-4 * delta_TO.abs().max()


class Shapes(TorchDispatchMode):
    """Remembers the shape of every tensor that any operation makes, in forward and in backward."""

    def __init__(self):
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen |= {tuple(tensor.shape) for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)}
        return result


def test_no_tensor_of_width_by_width_is_ever_made():
    """Published flaw 6: dense projectors, 50 GB for Gemma 3 12B. Nor one for every expert's output."""
    peft = stacked_model("llama", ["chat_r1", LEARNING])
    stacks = tuner(peft)
    stacks.fire(["chat_r1"], train=LEARNING)
    bases = {
        path: orthonormal(site.out_features, 3, 1, torch.float32)
        for path, site in zip(stacks.site_names(), stacks.sites, strict=True)
    }
    stacks.confine(Basis(bases))
    site = next(site for site in stacks.sites if site.out_features != site.in_features)
    x = torch.randn(2, 5, site.in_features, requires_grad=True)
    with Shapes() as shapes:
        site(x).sum().backward()
        stacks.folded(LEARNING)
    width, tokens = site.out_features, 10
    assert any(width in shape for shape in shapes.seen)
    assert not [shape for shape in shapes.seen if shape.count(width) > 1]
    assert not [shape for shape in shapes.seen if torch.Size(shape).numel() > max(tokens, width) * 2 * width]


def test_a_basis_without_columns_and_no_basis_confine_nothing():
    peft = stacked_model("llama", [LEARNING])
    stacks = tuner(peft)
    path = stacks.site_names()[0]
    stacks.confine(Basis({path: torch.zeros(stacks.sites[0].out_features, 0)}))
    assert stacks.sites[0].basis_OK is None
    a_MI, b_MO = stacks.sites[0].effective(LEARNING)
    assert torch.equal(b_MO, stacks.sites[0].stack_B[LEARNING].flatten(0, 1))
    assert torch.equal(a_MI, stacks.sites[0].stack_A[LEARNING].flatten(0, 1))
