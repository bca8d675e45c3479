"""Continuous batching: a row's tokens are those that it has alone, whoever shares its batch and whenever they came."""

from __future__ import annotations

import pytest
import torch
from stacked_bases import tiny_stacked_base

from bs_cluster.inference.generate import greedy_answers
from bs_cluster.records import StackId
from bs_cluster.serving.engine import Engine, Row
from bs_cluster.serving.sampling import Sampling

STACKS = [StackId("chat", 1), StackId("chat", 2), StackId("code", 1), StackId("math", 1)]
DOMAINS = ["chat", "code", "math"]
GATES = [{"chat": 1.0}, {}, {"chat": 0.2, "code": 1.0, "math": 0.6}, {"math": 1.0}, {"chat": 1.0, "math": 1.0}]
LENGTHS = (5, 90, 3, 40, 12)  # the second is longer than the sliding window, 64
SEEDED = Sampling(temperature=1.5, top_p=0.9, seed=11)
NEW = 12


@pytest.fixture(scope="module", params=["gemma3", "llama"])
def stacked(request, tmp_path_factory):
    return tiny_stacked_base(tmp_path_factory.mktemp("base"), request.param, STACKS, spread=0.3)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 258, (length,), generator=generator).tolist() for length in LENGTHS]


def rows(sampling: Sampling = Sampling(), new: int = NEW) -> list[Row]:  # noqa: B008
    return [Row(prompt, gates, sampling, new) for prompt, gates in zip(prompts(), GATES, strict=True)]


def finish(engine: Engine) -> None:
    while engine.rows:
        engine.step()


def alone(stacked, asked: list[Row]) -> list[list[int]]:
    for row in asked:
        engine = Engine(stacked, 1, 128)
        engine.join([row])
        finish(engine)
    return [row.tokens for row in asked]


def weights(gates: dict[str, float]) -> torch.Tensor:
    return torch.tensor([[gates.get(domain, 0.0) for domain in DOMAINS]])


def test_an_answer_is_the_one_that_generate_gives(stacked):
    """Key-value slots and masks of our own against those of transformers."""
    for row in rows():
        engine = Engine(stacked, 1, 128)
        engine.join([row])
        finish(engine)
        (text,) = greedy_answers(stacked, [row.prompt], weights(row.gates), DOMAINS, NEW)
        assert stacked.base.tokenizer.decode(row.tokens, skip_special_tokens=True).strip() == text


@pytest.mark.parametrize("sampling", [Sampling(), SEEDED], ids=["greedy", "seeded"])
def test_rows_under_different_gates_share_a_batch_and_are_each_as_alone(stacked, sampling):
    together, engine = rows(sampling), Engine(stacked, 5, 128)
    engine.join(together)
    finish(engine)
    assert [row.tokens for row in together] == alone(stacked, rows(sampling))
    assert len({tuple(row.tokens) for row in together}) == len(together)


@pytest.mark.parametrize("sampling", [Sampling(), SEEDED], ids=["greedy", "seeded"])
def test_rows_that_come_and_go_are_each_as_alone(stacked, sampling):
    """Three slots for five rows: a later one takes a freed slot, of which it finds another's leavings."""
    asked, engine = rows(sampling), Engine(stacked, 3, 128)
    for row, new in zip(asked, (4, 12, 7, 9, 12), strict=True):
        row.max_tokens = new
    waiting = list(asked)
    while waiting or engine.rows:
        if waiting and engine.free:
            engine.join([waiting.pop(0)])
        if engine.rows:
            engine.step()
    wanted = alone(stacked, rows(sampling))
    assert [row.tokens for row in asked] == [
        tokens[: row.max_tokens] for row, tokens in zip(asked, wanted, strict=True)
    ]


def test_a_row_that_leaves_in_the_middle_changes_no_other(stacked):
    asked, engine = rows(), Engine(stacked, 5, 128)
    engine.join(asked)
    for leaving in (asked[0], asked[4], asked[1]):  # the first, the last, one in the middle
        engine.step()
        engine.leave(leaving)
    finish(engine)
    wanted = alone(stacked, rows())
    assert [asked[2].tokens, asked[3].tokens] == [wanted[2], wanted[3]]
    assert len(asked[0].tokens) == 2


def test_a_row_ends_at_the_end_token_and_at_its_longest(stacked, monkeypatch):
    free = alone(stacked, rows()[2:3])[0]
    assert Row([5], {}, Sampling(), NEW).ended is None
    place = next(n for n in range(2, NEW) if free[n] not in free[:n])
    monkeypatch.setattr(stacked.base.model.generation_config, "eos_token_id", free[place])
    row = rows()[2]
    engine = Engine(stacked, 1, 128)
    engine.join([row])
    finish(engine)
    assert (row.tokens, row.ended) == (free[: place + 1], "stop")
    short = rows(new=2)[2]
    engine.join([short])
    finish(engine)
    assert (short.tokens, short.ended) == (free[:2], "length")


def test_a_single_token_is_an_answer_too(stacked):
    row, engine = rows(new=1)[0], Engine(stacked, 1, 128)
    engine.join([row])
    assert (len(row.tokens), row.ended, engine.free) == (1, "length", 1)


def test_seeds_are_a_request_s_own(stacked):
    """The same seed draws the same, another one differently, and none another time something else."""

    def drawn(seed: int | None) -> list[int]:
        return alone(stacked, [Row(prompts()[0], GATES[0], Sampling(2.0, 1.0, seed), 20)])[0]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)


def test_more_than_fits_is_an_error_of_ours(stacked):
    with pytest.raises(AssertionError, match="2 rows for 1 free"):
        Engine(stacked, 1, 128).join(rows()[:2])
    with pytest.raises(AssertionError, match="longer than 16"):
        Engine(stacked, 1, 16).join(rows()[:1])
