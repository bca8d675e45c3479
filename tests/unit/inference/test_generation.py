"""Generation under gates: the cache changes nothing, and a batch of rows with different gates is each row alone."""

from __future__ import annotations

import pytest
import torch
from stacked_bases import tiny_stacked_base
from tiny import PAD
from torch.utils._python_dispatch import TorchDispatchMode

from bs_cluster.inference.generate import drawn_tokens, end_tokens, greedy_answers
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import StackId

STACKS = [StackId("chat", 1), StackId("chat", 2), StackId("code", 1), StackId("math", 1)]
DOMAINS = ["chat", "code", "math"]
WEIGHTS_BD = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.2, 1.0, 0.6]])
LENGTHS = (5, 9, 3)
NEW = 12


@pytest.fixture(scope="module", params=["gemma3", "llama"])
def stacked(request, tmp_path_factory) -> StackedBase:
    return tiny_stacked_base(tmp_path_factory.mktemp("base"), request.param, STACKS, spread=0.3)


def prompts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 258, (length,), generator=generator) for length in LENGTHS]


@torch.no_grad()
def generate(stacked, rows: list[torch.Tensor], weights_BD: torch.Tensor, **settings) -> list[list[int]]:
    """Greedy continuations of prompts padded on the left."""
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.full((longest - len(row),), PAD), row]) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    with stacked.tuner.gates(weights_BD, DOMAINS):
        out = stacked.base.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=PAD,
            **settings,
        )
    return out[:, longest:].tolist()


@torch.no_grad()
def without_cache(stacked, row: torch.Tensor, weights_1D: torch.Tensor) -> list[int]:
    """Arg max of a full forward for each new token; the end token is forbidden as ``min_new_tokens`` forbids it."""
    ids = row.tolist()
    for _ in range(NEW):
        with stacked.tuner.gates(weights_1D, DOMAINS):
            logits_V = stacked.base.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits_V[stacked.base.model.config.eos_token_id] = -torch.inf
        ids.append(int(logits_V.argmax()))
    return ids[len(row) :]


@pytest.mark.parametrize("row", range(3))
def test_the_key_value_cache_gives_the_uncached_tokens(stacked, row: int):
    weights_1D = WEIGHTS_BD[row : row + 1]
    assert generate(stacked, [prompts()[row]], weights_1D)[0] == without_cache(stacked, prompts()[row], weights_1D)


def test_a_batch_with_different_gates_is_each_row_alone(stacked):
    together = generate(stacked, prompts(), WEIGHTS_BD)
    for row, prompt in enumerate(prompts()):
        assert generate(stacked, [prompt], WEIGHTS_BD[row : row + 1])[0] == together[row]
    same_gates = generate(stacked, prompts(), WEIGHTS_BD[2:].expand(3, -1))
    assert same_gates[:2] != together[:2]


def test_an_answer_in_a_batch_is_the_one_given_alone_and_ends_where_it_ends(stacked, monkeypatch):
    """To the letter, in fp32, beside rows of other lengths and other gates, whichever of them ends first."""
    rows = [prompt.tolist() for prompt in prompts()]
    alone = [greedy_answers(stacked, [row], WEIGHTS_BD[i : i + 1], DOMAINS, NEW)[0] for i, row in enumerate(rows)]
    assert greedy_answers(stacked, rows, WEIGHTS_BD, DOMAINS, NEW) == alone
    assert greedy_answers(stacked, rows[::-1], WEIGHTS_BD.flip(0), DOMAINS, NEW) == alone[::-1]
    free = generate(stacked, [prompts()[0]], WEIGHTS_BD[:1])[0]
    monkeypatch.setattr(stacked.base.model.generation_config, "eos_token_id", free[4])
    ended = stacked.base.tokenizer.decode(free[: free.index(free[4])], skip_special_tokens=True).strip()
    assert greedy_answers(stacked, rows, WEIGHTS_BD, DOMAINS, NEW)[0].startswith(ended)
    assert len(greedy_answers(stacked, rows, WEIGHTS_BD, DOMAINS, NEW)[0]) <= len(ended) + 1


class Products(TorchDispatchMode):
    """Counts batches of products onto the vocabulary."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.batched = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.batched += func is torch.ops.aten.bmm.default and made.shape[-1] == self.vocabulary
        return made


def test_the_head_is_one_product_for_a_batch_of_prompts(stacked):
    """As a batch of products, each with its copy of the weight, it took a second a row of Gemma 3 270M."""
    rows = [prompt.tolist() for prompt in prompts()]
    with Products(stacked.base.model.config.vocab_size) as products:
        greedy_answers(stacked, rows, WEIGHTS_BD, DOMAINS, 2)
    assert products.batched == 0


def test_several_sequences_a_prompt_keep_their_prompts_gates(stacked):
    """transformers repeats each prompt for its beams; their gate weights follow."""
    plain = generate(stacked, prompts(), WEIGHTS_BD, num_beams=2, num_return_sequences=1)
    for row, prompt in enumerate(prompts()):
        alone = generate(stacked, [prompt], WEIGHTS_BD[row : row + 1], num_beams=2, num_return_sequences=1)
        assert alone[0] == plain[row]


def test_a_draw_hangs_on_its_seed_alone(stacked):
    rows = [row.tolist() for row in prompts()]
    together = drawn_tokens(stacked, rows, [1, 2, 3], NEW, 1.0)
    for place, row in enumerate(rows):
        assert drawn_tokens(stacked, [row], [place + 1], NEW, 1.0) == [together[place]]
    assert drawn_tokens(stacked, rows, [1, 2, 4], NEW, 1.0)[:2] == together[:2]
    assert len({tuple(drawn_tokens(stacked, [rows[0]], [seed], NEW, 1.0)[0]) for seed in range(5)}) == 5


def test_draws_have_the_shares_that_the_model_gives(stacked):
    row, temperature, draws = prompts()[0].tolist(), 0.5, 2000
    first = [tokens[0] for tokens in drawn_tokens(stacked, [row] * draws, range(draws), 1, temperature)]
    with torch.no_grad():
        logits_V = stacked.base.model(input_ids=torch.tensor([row])).logits[0, -1].double()
    share_V = torch.softmax(logits_V / temperature, 0)
    found_V = torch.bincount(torch.tensor(first), minlength=len(share_V)) / draws
    error_V = (share_V * (1 - share_V) / draws).sqrt()
    assert ((found_V - share_V).abs() <= 5 * error_V + 1e-3).all()


def test_a_continuation_ends_with_its_end_token(stacked):
    ends = end_tokens(stacked)
    for tokens in drawn_tokens(stacked, [row.tolist() for row in prompts()] * 40, range(120), 40, 3.0):
        assert not set(tokens[:-1]) & set(ends)
        assert tokens[-1] in ends or len(tokens) == 40
