"""Blocks on parts of the residual stream: nothing at first, never in each other's way, and of the size asked for."""

import copy

import pytest
import torch
from tiny import tiny_gemma3, tiny_llama

from benchmarks.partitions import Blocks, Partitioned, parameters_of, partitions, without_words
from bs_cluster.decoder import decoder_and_head

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module", params=[tiny_llama, tiny_gemma3])
def base(request):
    return request.param()


def blocks_on(base, domains: int = 2) -> list[Blocks]:
    config = without_words(base.config)
    return [Blocks(config, columns) for columns in partitions(base.config.hidden_size, domains, seed=0)]


def test_partitions_are_orthonormal_over_all_domains():
    dealt = torch.cat(partitions(32, 3, seed=1), dim=1)
    assert dealt.shape == (32, 30)
    torch.testing.assert_close(dealt.t() @ dealt, torch.eye(30), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_blocks_leave_the_base_as_it_is(base, dtype):
    base = copy.deepcopy(base).to(dtype)
    model = Partitioned(base, blocks_on(base))
    assert torch.equal(model(input_ids=IDS).logits, base(input_ids=IDS).logits)


def test_what_one_domain_writes_another_cannot_see(base):
    one, other = blocks_on(base)
    draw = torch.Generator().manual_seed(0)
    embedded_BTH = torch.randn(1, 5, base.config.hidden_size, generator=draw)
    torch.nn.init.normal_(one.writes.weight, std=1.0, generator=draw)
    delta_BTH = one(embedded_BTH)
    assert delta_BTH.abs().max() > 0.01
    assert (delta_BTH @ other.columns_HQ).abs().max() < 1e-5


def test_only_blocks_learn(base):
    base.requires_grad_(False)
    blocks = blocks_on(base)[0]
    model = Partitioned(base, [blocks])
    learned = {id(p) for p in model.parameters() if p.requires_grad}
    assert learned == {id(p) for p in blocks.parameters()}
    assert sum(p.numel() for p in blocks.parameters()) == parameters_of(base.config, blocks.columns_HQ)
    assert decoder_and_head(model)[1] is base.get_output_embeddings()
