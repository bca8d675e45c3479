"""The curriculum as a pure state machine: legal, ordered, and always at an end some time."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.coordinator.curriculum import Progress, next_step
from bs_cluster.records import CloseDomain, Finished, StackId, StackRef, TrainRound

START = Progress(("chat", "code"), {"chat": (2,), "code": (1,)}, True, (), frozenset())


def commit(progress: Progress, step: TrainRound) -> Progress:
    ref = StackRef(step.stack, f"{step.stack.name:-<64}")
    entries = {**progress.entries, step.stack: step.entry}
    return dataclasses.replace(progress, committed=(*progress.committed, ref), entries=entries)


def reject(progress: Progress, step: TrainRound) -> Progress:
    tried = {**progress.last_round, step.stack.domain: step.stack.round}
    rejected = progress.rejected | {(step.stack.domain, step.entry)}
    return dataclasses.replace(progress, rejected=rejected, last_round=tried)


def close(progress: Progress, step: CloseDomain) -> Progress:
    return dataclasses.replace(progress, closed=progress.closed | {step.domain})


def test_rounds_then_closing_then_the_next_domain():
    progress, said = START, []
    for _ in range(6):
        step = next_step(progress)
        said.append(step)
        if isinstance(step, TrainRound):
            progress = commit(progress, step)
        elif isinstance(step, CloseDomain):
            progress = close(progress, step)
    one, two, closing, code, closing_code, end = said
    chat1, chat2 = StackId("chat", 1), StackId("chat", 2)
    assert one == TrainRound(chat1, 0, (), ())
    assert two == TrainRound(chat2, 0, progress.committed[:1], (chat1,))
    assert closing == CloseDomain("chat", 0, (chat1, chat2), (chat1, chat2))
    assert code == TrainRound(StackId("code", 1), 1, progress.committed[:2], (chat1, chat2))
    assert closing_code == CloseDomain("code", 1, (StackId("code", 1),), (chat1, chat2, StackId("code", 1)))
    assert end == Finished()


def test_in_isolation_only_the_domains_own_stacks_fire_but_parents_are_all_remembered():
    progress = dataclasses.replace(START, cumulative=False)
    while not isinstance(step := next_step(progress), TrainRound) or step.stack.domain != "code":
        progress = commit(progress, step) if isinstance(step, TrainRound) else close(progress, step)
    assert step.context == ()
    assert [ref.stack.name for ref in step.parents] == ["chat_r1", "chat_r2"]


def test_a_rejection_closes_the_domain_before_its_rounds_are_used_up():
    first = next_step(START)
    assert isinstance(first, TrainRound)
    assert next_step(reject(START, first)) == CloseDomain("chat", 0, (), ())
    after_one = commit(START, first)
    second = next_step(after_one)
    assert isinstance(second, TrainRound)
    assert next_step(reject(after_one, second)) == CloseDomain("chat", 0, (StackId("chat", 1),), (StackId("chat", 1),))


def test_the_step_stays_the_same_until_something_is_committed():
    assert next_step(START) == next_step(START)


def test_alignment_follows_when_boosting_is_through_and_a_number_is_used_once():
    start = dataclasses.replace(START, curriculum=("chat",), rounds={"chat": (2, 1, 1)})
    first = next_step(start)
    assert isinstance(first, TrainRound)
    boosted = commit(start, first)
    second = next_step(boosted)
    assert isinstance(second, TrainRound)
    aligning = next_step(reject(boosted, second))
    assert isinstance(aligning, TrainRound)
    assert (aligning.stack, aligning.entry) == (StackId("chat", 3), 1)
    assert aligning.context == (StackId("chat", 1),)
    last = next_step(commit(reject(boosted, second), aligning))
    assert isinstance(last, TrainRound)
    assert (last.stack, last.entry) == (StackId("chat", 4), 2)


def test_a_rejection_that_was_forgotten_is_not_tried_again_once_a_later_entry_has_begun():
    start = dataclasses.replace(START, curriculum=("chat",), rounds={"chat": (2, 1)})
    step = TrainRound(StackId("chat", 2), 0, (), (), entry=1)
    later = next_step(commit(start, step))
    assert later == CloseDomain("chat", 0, (StackId("chat", 2),), (StackId("chat", 2),))


@given(
    st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=4),
    st.lists(st.booleans(), max_size=30),
    st.booleans(),
)
def test_whatever_happens_the_steps_end_and_never_go_back(rounds, fortunes, cumulative):
    order = tuple(f"d{i}" for i in range(len(rounds)))
    limits = dict(zip(order, map(tuple, rounds), strict=True))
    max_rounds = [sum(entries) for entries in rounds]
    progress = Progress(order, limits, cumulative, (), frozenset())
    fortune = iter(fortunes)
    places: list[tuple[int, float]] = []
    for _ in range(sum(max_rounds) + 2 * len(order) + 1):
        step = next_step(progress)
        if isinstance(step, Finished):
            break
        if isinstance(step, TrainRound):
            assert order[step.position] == step.stack.domain
            assert step.stack.round <= sum(limits[step.stack.domain])
            assert tuple(step.parents) == tuple(progress.committed)
            assert set(step.context) <= {ref.stack for ref in step.parents}
            places.append((step.position, step.stack.round))
            progress = commit(progress, step) if next(fortune, True) else reject(progress, step)
        else:
            assert order[step.position] == step.domain
            assert {s.domain for s in step.stacks} <= {step.domain}
            assert set(step.stacks) <= set(step.context)
            places.append((step.position, float("inf")))
            progress = close(progress, step)
    else:
        pytest.fail("the curriculum did not end")
    assert progress.closed == set(order)
    assert places == sorted(set(places))
