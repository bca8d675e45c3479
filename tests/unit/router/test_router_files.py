"""A meta-router on disk: the same answers after the trip, no pickle, and nothing of another bundle's."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from worlds import DOMAINS, OWN, WIDTH, features, lessons, taught_by

from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.router.files import Reading, load_router, save_router
from bs_cluster.router.fit import Served
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.routers import AnchoredRouter, NetworkRouter

READING = Reading(DOMAINS, WIDTH // 2, 0.45, 256, "f00d")
OTHERS = [(DOMAINS[::-1], WIDTH // 2, "f00d", "domains"), (DOMAINS, 64, "f00d", "input_size")]
OTHERS += [(DOMAINS, WIDTH // 2, "beef", "base")]


@pytest.fixture(scope="module")
def learned() -> Served:
    served = taught_by(lessons({**OWN, "code": OWN["chat"]}, rows=16)).served
    assert isinstance(served.router, AnchoredRouter)
    assert served.router.learned is not None
    return served


def load(folder) -> Served:
    return load_router(folder, DOMAINS, WIDTH // 2, "f00d")[0]


@pytest.mark.parametrize("kind", ["learned", "careful", "anchor", "network"])
def test_a_saved_router_gives_the_same_gates(kind, learned, tmp_path):
    states = list(features("chat", 9, seed=4))
    served = learned
    if kind == "careful":
        gates = dataclasses.replace(learned.router.learned, everywhere=False)
        served = dataclasses.replace(learned, router=dataclasses.replace(learned.router, learned=gates))
    if kind == "anchor":
        served = dataclasses.replace(learned, router=dataclasses.replace(learned.router, learned=None))
    if kind == "network":
        served = Served(NetworkRouter(MetaRouter(WIDTH // 2, 3, hidden=8).eval()), (0, 1, 7), None)
        states = [state.reshape(2, -1) for state in states]
    card = save_router(tmp_path, served, READING)
    loaded = load(tmp_path)
    np.testing.assert_array_equal(loaded.gates(states), served.gates(states))
    assert (loaded.masks, card.pooled) == (served.masks, kind != "network")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.json", "router.safetensors"]


@pytest.mark.parametrize(("domains", "width", "base", "named"), OTHERS)
def test_a_router_of_another_bundle_is_refused(learned, tmp_path, domains, width, base, named):
    save_router(tmp_path, learned, READING)
    with pytest.raises(IntegrityError, match=f"trained for {named}"):
        load_router(tmp_path, domains, width, base)


def test_absent_files_are_told(tmp_path):
    with pytest.raises(NotInStoreError, match=r"router\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: arrays.pop("bank_NK"),
        lambda arrays: arrays.update(centre_F=arrays["centre_F"][:-1]),
        lambda arrays: arrays.update(whiten_FK=np.full_like(arrays["whiten_FK"], np.nan)),
        lambda arrays: arrays.update(owner_N=np.zeros_like(arrays["owner_N"])),
        lambda arrays: arrays.update(kind_limit_J=np.zeros(1), kind_home_J=np.zeros(1)),
        lambda arrays: arrays.update(more=np.zeros(3)),
    ],
)
def test_damaged_arrays_are_refused(learned, tmp_path, damage):
    save_router(tmp_path, learned, READING)
    arrays = load_file(tmp_path / "router.safetensors")
    damage(arrays)
    save_file(arrays, tmp_path / "router.safetensors")
    with pytest.raises(IntegrityError, match="does not fit"):
        load(tmp_path)


def test_combinations_that_the_bundle_does_not_have_are_refused(learned, tmp_path):
    card = save_router(tmp_path, learned, READING)
    (tmp_path / "router.json").write_text(json.dumps(dataclasses.replace(card, masks=(0, 8)).to_dict()))
    with pytest.raises(IntegrityError, match="no combinations"):
        load(tmp_path)


def test_what_is_not_safetensors_is_refused(learned, tmp_path):
    save_router(tmp_path, learned, READING)
    (tmp_path / "router.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(IntegrityError, match="does not fit"):
        load(tmp_path)
