"""Checkpoints of a round: the newest sound one of this very round is taken, whatever else lies there."""

from __future__ import annotations

import json

import pytest
import torch

from bs_cluster.store import Store
from bs_cluster.training.checkpoint import Checkpoints, forget_other_rounds


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


def checkpoints(store, identity: str = "this", every_s: float = 1.0) -> Checkpoints:
    return Checkpoints(store.round_area("chat_r1"), identity, every_s)


def taken_up(store, identity: str = "this") -> int:
    """The step that a round goes on after, 0 from its start."""
    state = Counted()
    found = checkpoints(store, identity).resume(state)
    assert found == (state.step > 0)
    assert torch.equal(state.weight, torch.full((3,), float(state.step)))
    return state.step


def test_the_newest_is_taken_and_older_ones_are_gone(store):
    assert taken_up(store) == 0
    for step in (3, 9, 12):
        checkpoints(store).write(Counted(step))
    assert store.round_area("chat_r1").names() == ["12.json", "12.safetensors"]
    assert taken_up(store) == 12


def test_one_of_other_settings_rows_or_base_is_ignored(store):
    checkpoints(store, "other").write(Counted(3))
    assert taken_up(store) == 0


@pytest.mark.parametrize("damage", ["tensors", "numbers", "missing"])
def test_one_that_is_damaged_is_ignored_for_the_one_before(store, damage):
    area = store.round_area("chat_r1")
    checkpoints(store).write(Counted(3))
    older = {name: area.read(name) for name in area.names()}
    checkpoints(store).write(Counted(4))
    for name, data in older.items():
        area.write(name, data)  # as if the writer had died before it pruned
    if damage == "tensors":
        data = bytearray(area.read("4.safetensors"))
        data[-1] ^= 1
        area.write("4.safetensors", bytes(data))
    elif damage == "numbers":
        area.write("4.json", area.read("4.json")[:-5])
    else:
        area.delete("4.safetensors")
    assert taken_up(store) == 3


def test_tensors_without_their_numbers_were_never_finished(store):
    checkpoints(store).write(Counted(3))
    store.round_area("chat_r1").delete("3.json")
    assert taken_up(store) == 0


def test_when_one_is_due(store):
    assert not checkpoints(store, every_s=3600).due()
    assert checkpoints(store, every_s=1e-9).due()
    assert not checkpoints(store, every_s=0).due()


def test_rounds_that_are_over_leave_nothing(store):
    checkpoints(store).write(Counted(3))
    Checkpoints(store.round_area("chat_r2"), "this", 1.0).write(Counted(5))
    assert store.rounds() == ["chat_r1", "chat_r2"]
    forget_other_rounds(store, "chat_r2")
    assert store.rounds() == ["chat_r2"]
    forget_other_rounds(store, None)
    assert store.rounds() == []


def test_nothing_in_it_is_a_pickle(store):
    checkpoints(store).write(Counted(3))
    area = store.round_area("chat_r1")
    assert json.loads(area.read("3.json"))["state"] == {"step": 3}
    assert int.from_bytes(area.read("3.safetensors")[:8], "little") < 1000  # safetensors: the length of its header
