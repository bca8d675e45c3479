"""The curriculum as a pure state machine: legal, ordered, and always at an end some time."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.coordinator.curriculum import Progress, next_step
from bs_cluster.records import CloseDomain, Finished, StackId, StackRef, TrainRound

START = Progress(("chat", "code"), {"chat": 2, "code": 1}, True, (), frozenset(), frozenset())


def commit(progress: Progress, step: TrainRound) -> Progress:
    ref = StackRef(step.stack, f"{step.stack.name:-<64}")
    return dataclasses.replace(progress, committed=(*progress.committed, ref))


def reject(progress: Progress, step: TrainRound) -> Progress:
    return dataclasses.replace(progress, rejected=progress.rejected | {step.stack.domain})


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


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.lists(st.booleans(), max_size=30),
    st.booleans(),
)
def test_whatever_happens_the_steps_end_and_never_go_back(max_rounds, fortunes, cumulative):
    order = tuple(f"d{i}" for i in range(len(max_rounds)))
    limits = dict(zip(order, max_rounds, strict=True))
    progress = Progress(order, limits, cumulative, (), frozenset(), frozenset())
    fortune = iter(fortunes)
    places: list[tuple[int, float]] = []
    for _ in range(sum(max_rounds) + 2 * len(order) + 1):
        step = next_step(progress)
        if isinstance(step, Finished):
            break
        if isinstance(step, TrainRound):
            assert order[step.position] == step.stack.domain
            assert step.stack.round <= limits[step.stack.domain]
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
