"""States far beyond float16: Gemma 3's middle layers reach 82,432 on the 270M, and float16 ends at 65,504.

From a base through encoding, training, saving and loading to what is served, nothing may overflow on the way.
"""

import numpy as np
import pytest
import torch
from tiny import tiny_gemma3, tiny_tokenizer
from worlds import taught_by

from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection, NetworkSection, RouterSection
from bs_cluster.inference.evaluator import encode_states
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import RowLoss
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.files import Reading, load_router, save_router
from bs_cluster.router.fit import Lessons
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.outcomes import OutcomeTable

DOMAINS = ("letters", "digits", "capitals")
ALPHABETS = ("abcdefghij", "0123456789", "QRSTUVWXYZ")
LARGE = 1e6
MID_WEIGHT = 0.45


def scaled_embeddings(model) -> None:
    """The residual stream starts out large and stays so."""
    model.model.embed_tokens.weight.data.mul_(1e8)


def scaled_norms(model) -> None:
    """Layers write large, as they do in the middle of a trained Gemma 3."""
    for layer in model.model.layers:
        layer.post_feedforward_layernorm.weight.data.fill_(1e7)


@pytest.fixture(scope="module", params=[scaled_embeddings, scaled_norms])
def large_base(request, tmp_path_factory) -> StackedBase:
    model = tiny_gemma3(layers=4)
    request.param(model)
    folder = tmp_path_factory.mktemp("large")
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    section = BaseSection(model=str(folder), quantization="nf4", compute_dtype="bfloat16")
    return StackedBase(load_base(section, device="cpu"), cache_dequantized=False)


def prompts(stacked: StackedBase, count: int, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """``count`` prompts of each domain, and whose each is."""
    draw = np.random.default_rng(seed)
    texts = ["".join(draw.choice(list(letters), 12)) for letters in ALPHABETS for _ in range(count)]
    ids = [stacked.base.tokenizer(text)["input_ids"] for text in texts]
    return ids, np.repeat(np.arange(len(DOMAINS)), count)


def outcomes(owner_B: np.ndarray) -> OutcomeTable:
    """A row's own domain gains a nat, every other one costs half of that."""
    table = OutcomeTable([f"q{row}" for row in range(len(owner_B))], [DOMAINS[d] for d in owner_B], DOMAINS)
    for row, owner in enumerate(owner_B.tolist()):
        for mask in all_masks(len(DOMAINS)):
            own, others = bool(mask & 1 << owner), (mask & ~(1 << owner)).bit_count()
            table.record(row, mask, RowLoss(10 * (3.0 - own + 0.5 * others), 10))
    return table


@pytest.mark.parametrize("kind", ["anchored", "network"])
def test_the_right_domain_is_found_whatever_states_reach(kind, large_base, tmp_path):
    pooled = kind == "anchored"

    def encoded(ids):
        return encode_states(large_base, ids, MID_WEIGHT, pooled)

    training, training_owner_N = prompts(large_base, 20, seed=1)
    bank = np.stack(encode_states(large_base, training, MID_WEIGHT, pooled=True))
    assert np.abs(bank).max() > LARGE
    assert np.isfinite(bank).all()
    anchor = fit_anchor(bank, training_owner_N, len(DOMAINS))

    rows, owner_B = prompts(large_base, 12, seed=2)
    settings = RouterSection(kind=kind, network=NetworkSection(hidden=32))
    lessons = Lessons(outcomes(owner_B), encoded(rows), anchor, settings, seed=0)
    served = taught_by(lessons).served
    hidden = large_base.base.model.config.get_text_config().hidden_size
    save_router(tmp_path, served, Reading(DOMAINS, hidden, MID_WEIGHT, 64, "f00d"))
    loaded, card = load_router(tmp_path, DOMAINS, hidden, "f00d")
    assert card.pooled == pooled

    fresh, fresh_owner_B = prompts(large_base, 10, seed=3)
    gates_BD = loaded.gates(encoded(fresh))
    assert np.isfinite(gates_BD).all()
    assert (gates_BD.argmax(axis=1) == fresh_owner_B).mean() > 0.9
