"""A domain's probe is the very bits of its logits, and nothing but its own stacks, its rows and the base moves it."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch
from stacked_bases import tiny_stacked_base

from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import PROBE_ROWS, probe_rows
from bs_cluster.inference.evaluator import Evaluator
from bs_cluster.inference.probe import PROBE_TOKENS, probe
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import StackId

CHAT = [StackId("chat", 1), StackId("chat", 2)]
LATER = [StackId("code", 1), StackId("math", 1)]


def rows(count: int = 6, length: int = 20) -> list[EncodedRow]:
    draw = random.Random(0)
    return [
        EncodedRow(tuple(draw.randint(4, 258) for _ in range(length + i)), 3, f"row{i}", "chat") for i in range(count)
    ]


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "nf4"])
def grown(request, tmp_path_factory) -> tuple[StackedBase, StackedBase]:
    """Chat's stacks alone on the base, and with those of two domains that came after it."""
    made = tmp_path_factory.mktemp("base")
    return tuple(tiny_stacked_base(made / str(n), "gemma3", CHAT + LATER[:n], nf4=request.param) for n in (0, 2))


def test_the_probe_set_is_a_rule_about_the_rows_alone():
    assert probe_rows(rows()) == tuple(rows()[:PROBE_ROWS])
    assert probe_rows(rows(2)) == tuple(rows(2))


def test_domains_that_came_later_change_no_bit(grown):
    before, after = grown
    told = probe(before, before.of("chat"), rows())
    assert probe(after, after.of("chat"), rows()) == told
    assert probe(after, after.names, rows()).rows != told.rows
    assert probe(after, after.of("code"), rows()).rows != told.rows


def test_a_digest_is_of_the_logits_own_bytes(grown):
    stacked, one = grown[0], rows(1)
    with torch.no_grad():
        logits_TV = stacked.base.model(input_ids=torch.tensor([one[0].input_ids])).logits[0]
    told = probe(stacked, stacked.names, one).rows[0]
    assert told.logits == hashlib.sha256(logits_TV.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    mean = torch.nn.functional.cross_entropy(logits_TV[:-1].float(), torch.tensor(one[0].input_ids[1:]))
    assert told.loss == pytest.approx(float(mean), rel=1e-6)


def test_a_row_counts_up_to_its_limit_of_tokens(grown):
    stacked, long = grown[0], rows(1, PROBE_TOKENS + 9)[0]
    cut = EncodedRow(long.input_ids[:PROBE_TOKENS], long.prompt_length, long.id, long.domain)
    assert probe(stacked, stacked.names, [long]) == probe(stacked, stacked.names, [cut])
    shorter = EncodedRow(long.input_ids[: PROBE_TOKENS - 1], long.prompt_length, long.id, long.domain)
    assert probe(stacked, stacked.names, [long]) != probe(stacked, stacked.names, [shorter])


def test_a_row_is_alone_whatever_others_are_probed(grown):
    stacked = grown[1]
    together = probe(stacked, stacked.names, rows()).rows
    assert [probe(stacked, stacked.names, [row]).rows[0] for row in rows()] == list(together)


def test_threads_of_the_process_play_no_part(grown):
    stacked, threads = grown[0], torch.get_num_threads()
    told = probe(stacked, stacked.names, rows())
    torch.set_num_threads(2)
    try:
        assert probe(stacked, stacked.names, rows()) == told
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_what_fired_fires_again(grown):
    stacked = grown[1]
    stacked.fire(["code_r1"])
    probe(stacked, stacked.of("chat"), rows(1))
    assert stacked.tuner.composition.firing == ("code_r1",)
    stacked.fire(stacked.names)


def test_the_least_change_of_a_stack_is_seen(tmp_path):
    stacked = tiny_stacked_base(tmp_path, "gemma3", CHAT[:1])
    told = probe(stacked, stacked.names, rows(1))
    site = stacked.tuner.sites[0]
    with torch.no_grad():
        site.stack_B["chat_r1"].view(-1)[0] += 1e-4
    site.unpack()
    changed = probe(stacked, stacked.names, rows(1))
    assert changed.rows[0].logits != told.rows[0].logits
    assert changed.environment == told.environment


def test_an_evaluator_probes_each_domain_with_its_own_stacks(grown):
    stacked = grown[1]
    evaluator = Evaluator.__new__(Evaluator)
    evaluator.stacked = stacked
    told = evaluator.probe(["chat", "math"], [rows(2), rows(3)])
    assert told == [probe(stacked, stacked.of("chat"), rows(2)), probe(stacked, stacked.of("math"), rows(3))]
