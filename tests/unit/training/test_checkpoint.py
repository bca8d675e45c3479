"""Checkpoints of a round: the newest sound one of this very round is taken, whatever else lies there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors import safe_open

from bs_cluster.events import CheckpointTrouble, NodeLeaves, RoundResumed
from bs_cluster.records import StackId
from bs_cluster.store import Store
from bs_cluster.training import checkpoint
from bs_cluster.training.checkpoint import Checkpoints
from bs_cluster.training.preemption import Leaving

STACK = StackId("chat", 1)
GOING = Leaving(("one",), (1,), 90.0)
IDENTITY = {"config": "c", "set of rows": "r"}


class Counted:
    """A state of one tensor and one number, which tells them as ``RoundState`` does."""

    def __init__(self, step: int = 0):
        self.step = step
        self.weight = torch.full((3,), float(step))

    def save(self, keep: bool):
        assert keep
        return {"weight": self.weight}, {"step": self.step}

    def load(self, tensors, numbers):
        self.weight, self.step = tensors["weight"], numbers["step"]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"), "tiny")


@pytest.fixture
def area(store):
    return store.round_area(STACK.name)


def checkpoints(area, events: list | None = None, every_s: float = 1.0, **identity: str) -> Checkpoints:
    report = (events if events is not None else []).append
    return Checkpoints(area, STACK, IDENTITY | identity, every_s, report)


def write(area, *steps: int) -> None:
    """By one process, as they come in a round."""
    writer = checkpoints(area)
    for step in steps:
        writer.write(Counted(step))  # type: ignore[arg-type]


def taken_up(area, **changes) -> tuple[int, list]:
    """The step that a round goes on after, 0 from its start, and what it said."""
    state, events = Counted(), []
    found = checkpoints(area, events, **changes).resume(state)  # type: ignore[arg-type]
    assert found == (state.step > 0)
    assert torch.equal(state.weight, torch.full((3,), float(state.step)))
    assert [event.step for event in events if isinstance(event, RoundResumed)] == ([state.step] if found else [])
    return state.step, [event for event in events if isinstance(event, CheckpointTrouble)]


def steps(area) -> list[int]:
    return [int(name.partition("-")[0]) for name in area.names()]


def test_the_newest_is_taken_and_one_before_it_is_kept(area):
    assert taken_up(area) == (0, [])
    write(area, 3, 5, 7, 9)
    assert steps(area) == [7, 9]
    assert taken_up(area) == (9, [])


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        ({"config": "d"}, "not taken: it is of a round with another config"),
        (
            {"config": "d", "set of rows": "s"},
            "not taken: it is of a round with another config and another set of rows",
        ),
        ({"base": "b"}, "not taken: it is of a round with another base"),
    ],
)
def test_one_of_another_round_is_never_taken_and_its_reader_is_told_why(area, identity, why):
    write(area, 3)
    assert taken_up(area, **identity) == (0, [CheckpointTrouble(STACK, 3, why)])


def test_one_of_another_round_goes_when_the_next_is_written_though_its_step_is_higher(area):
    write(area, 90)
    checkpoints(area, config="d").write(Counted(4))  # type: ignore[arg-type]
    assert steps(area) == [4]


@pytest.mark.parametrize("damage", ["a bit", "the end", "the header", "no bytes"])
def test_one_that_is_damaged_is_passed_over_for_the_one_before_and_told(area, damage):
    write(area, 3, 4)
    newest = area.names()[-1]
    data = bytearray(area.read(newest))
    if damage == "a bit":
        data[-1] ^= 1
    elif damage == "the end":
        del data[-5:]
    elif damage == "the header":
        data[20] ^= 1
    else:
        data.clear()
    area.write(newest, bytes(data))
    trouble = CheckpointTrouble(STACK, 4, "not taken: its bytes are not those that were written")
    assert taken_up(area) == (3, [trouble])


def test_where_none_is_sound_the_round_begins_anew(area):
    write(area, 3)
    area.write(area.names()[0], b"no checkpoint")
    step, said = taken_up(area)
    assert (step, len(said)) == (0, 1)


def test_a_file_of_another_name_is_none(area):
    area.write("notes.txt", b"something")
    assert taken_up(area) == (0, [])


def test_when_one_is_due(area):
    assert not checkpoints(area, every_s=3600).due()
    assert checkpoints(area, every_s=1e-9).due()


def test_where_none_are_wanted_none_is_due_and_none_is_taken(area):
    write(area, 3)
    assert not checkpoints(area, every_s=0).due()
    assert taken_up(area, every_s=0) == (0, [])


def test_a_disk_that_takes_no_more_costs_the_checkpoint_and_not_the_round(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "rounds").write_text("a file where the folder should be")
    store, events = Store(str(tmp_path), "tiny"), []
    checkpoints(store.round_area(STACK.name), events).write(Counted(3))  # type: ignore[arg-type]
    (trouble,) = events
    assert trouble.step == 3
    assert trouble.why.startswith("could not be written (")


def test_rounds_that_are_over_leave_nothing(store):
    write(store.round_area("chat_r1"), 3)
    write(store.round_area("chat_r2"), 5)
    store.clear_rounds(under_way="chat_r2")
    assert (steps(store.round_area("chat_r1")), steps(store.round_area("chat_r2"))) == ([], [5])
    store.clear_rounds()
    assert steps(store.round_area("chat_r2")) == []


def test_it_is_plain_safetensors(area, tmp_path):
    write(area, 3)
    path = tmp_path / "store" / "tiny" / area.folder / area.names()[0]
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["weight"]
        assert file.metadata() == {"identity": '{"config":"c","set of rows":"r"}', "state": '{"step":3}'}


def test_a_node_s_notice_makes_a_checkpoint_due_and_more_soon_after(area, monkeypatch):
    told = [None, GOING, GOING, dataclasses.replace(GOING, nodes=("one", "two"), ranks=(1, 2))]
    events: list = []
    kept = checkpoints(area, events, every_s=1000)
    kept.leaving = lambda: told.pop(0)
    monkeypatch.setattr(checkpoint, "NOTICED_EVERY_S", 0.0)
    assert not kept.look_due()  # the round has just begun
    monkeypatch.setattr(checkpoint, "LOOK_EVERY_S", 0.0)
    assert kept.look_due()
    assert not kept.look(step=3)
    assert not kept.due()
    assert kept.look(step=4)
    assert kept.due()
    assert not kept.look(step=5)  # no news
    assert kept.look(step=6)  # another node goes too
    assert events == [NodeLeaves(STACK, 4, (1,), 90.0), NodeLeaves(STACK, 6, (1, 2), 90.0)]


def test_without_checkpoints_nobody_looks_for_notices(area, monkeypatch):
    monkeypatch.setattr(checkpoint, "LOOK_EVERY_S", 0.0)
    assert not checkpoints(area, every_s=0).look_due()
