"""A fault of a node is told, with the node and what to do; where there is none, every line is green."""

import dataclasses
import importlib.util
import json
import resource
from pathlib import Path

import pytest
from tiny import save_tiny_base
from tiny_campaign import campaign

from bs_cluster.config.schema import SweepRows
from bs_cluster.config.sources import EmbeddedSource
from bs_cluster.doctor import facts
from bs_cluster.doctor.checks import Check, Clock, check_gpus, check_nodes, healthy
from bs_cluster.doctor.examine import HERE, examine
from bs_cluster.doctor.facts import Facts, check_data, check_store
from bs_cluster.doctor.show import show
from bs_cluster.errors import DataError, StoreError
from bs_cluster.store import Store

WELL = Facts(
    node="host",
    versions={"python": "3.11.7", "torch": "2.13.0"},
    code="c" * 64,
    cpus=8,
    gpus=1,
    free_disk=100 * 10**9,
    token="12345678",
    open_ports=(6379,),
    troubles={},
)
CLOCKS = {"head": Clock(0.0, 0.01), "one": Clock(0.1, 0.01), "two": Clock(-0.1, 0.01)}


def of(wanted_disk: int = 10**9, clocks=CLOCKS, **changed) -> dict[tuple[str, str], Check]:
    """Checks of a cluster of three nodes, the last of which is ``changed``: those that are not green."""
    found = {"head": WELL, "one": WELL, "two": dataclasses.replace(WELL, **changed)}
    return {(check.name, check.node): check for check in check_nodes(found, clocks, wanted_disk) if not check.ok}


def test_a_sound_cluster_is_green():
    assert of() == {}


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("versions", {"versions": {**WELL.versions, "torch": "2.9.0"}}, "torch 2.9.0, elsewhere 2.13.0; install torch"),
        ("code", {"code": "d" * 64}, "submit with --working-dir"),
        ("token", {"token": ""}, "holds no token; give it that of the others"),
        ("token", {"token": "87654321"}, "holds another token (87654321)"),
        ("disk", {"free_disk": 10**8}, "0.1 GB free, the base and copies of all stacks take 1.0"),
        ("store", {"troubles": {"store": "cannot be written"}}, "cannot be written"),
        ("base model", {"troubles": {"base": "no safetensors here"}}, "no safetensors here"),
    ],
)
def test_a_fault_names_its_node_and_the_way_out(name, changed, told):
    found = of(**changed)
    assert told in found[name, "two"].told
    assert not healthy([found[name, "two"]])


def test_a_clock_that_is_surely_late_is_told_and_one_that_may_be_right_is_not():
    late = of(clocks={**CLOCKS, "two": Clock(-5.0, 0.1)})
    assert late["clock", "two"].told == "5.0 s behind the driver's; start chrony or ntpd here"
    assert of(clocks={**CLOCKS, "two": Clock(-5.0, 4.0)}) == {}


def test_gpus_that_ray_counts_on_and_nobody_sees_are_told():
    found = {"head": WELL, "one": dataclasses.replace(WELL, gpus=0)}
    told = list(check_gpus(found, {"head": 1.0, "one": 1.0}))
    assert [(check.node, check.ok) for check in told] == [("one", False)]
    assert told[0].told.endswith("--num-gpus=0")
    assert [check.ok for check in check_gpus(found, {"head": 1.0, "one": 0.0})] == [True]
    assert list(check_gpus(found, {"head": 0.0, "one": 0.0})) == []


def test_sockets_without_a_token_are_an_open_door():
    found = {name: dataclasses.replace(WELL, token="") for name in ("head", "one")}
    told = {check.name: check for check in check_nodes(found, CLOCKS, 0) if not check.ok}
    assert "RAY_AUTH_MODE=token" in told["token"].told
    assert "6379" in told["addresses"].told


@pytest.fixture
def tiny(tmp_path):
    save_tiny_base(tmp_path / "base")
    for name in ("aa", "bb"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    return campaign(tmp_path, tmp_path / "store", ("aa", "bb"), training={"num_workers": 1}, sweep={"evaluators": 1})


def test_this_machine_alone_is_examined_without_ray_and_left_as_it_was(tiny, capsys):
    checks = examine(tiny, None)
    assert [check for check in checks if not check.ok] == []
    assert {"versions", "code", "store", "mlflow", "resources", "disk", "compiler"} <= {check.name for check in checks}
    store = Store(tiny.store.uri, tiny.campaign)
    assert store.stacks() == []
    assert not any(path.is_file() for path in Path(tiny.store.uri).rglob("*"))
    show(checks)
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "fit"
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_store_that_cannot_be_written_is_told(tiny):
    locked = tiny.model_copy(update={"store": tiny.store.model_copy(update={"uri": "/sys/fs/bs_store"})})
    checks = examine(locked, None)
    told = [check for check in checks if check.name == "store" and not check.ok]
    assert told[0].node == HERE
    assert "/sys/fs/bs_store" in told[0].told


def test_a_full_disk_is_told(tiny):
    """As a limit on the size of any file, which a process meets as it would the end of the volume."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, hard))
    try:
        with pytest.raises(StoreError, match="cannot be created"):
            check_store(tiny, "doctor-x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_store_that_is_another_folder_on_a_node_is_told(tiny):
    with pytest.raises(ValueError, match="is another folder here"):
        check_store(tiny, "doctor-of-another")


def test_an_mlflow_that_does_not_answer_is_told(tiny):
    away = tiny.model_copy(update={"registry": tiny.registry.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})})
    told = next(check for check in examine(away, None) if check.name == "mlflow")
    assert not told.ok
    assert "http://127.0.0.1:9 is away" in told.told


def test_rows_that_a_node_does_not_see_are_told(tiny, tmp_path):
    (tmp_path / "bb.jsonl").unlink()
    with pytest.raises(ValueError, match=r"bb\.jsonl: no file matches here"):
        check_data(tiny)


def test_a_machine_without_a_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="gcc not found, which Triton compiles with"):
        facts.check_compiler(gpu=True)
    facts.check_compiler(gpu=False)


def test_a_package_that_a_kind_of_rows_is_read_from_is_told_where_it_is_missing(tiny, monkeypatch):
    kind = SweepRows(name="ciphers", source=EmbeddedSource(kind="embedded", name="ciphers"), rows=4)
    asked = tiny.model_copy(update={"sweep": tiny.sweep.model_copy(update={"foreign": (kind,)})})
    check_data(asked)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "reasoning_gym" else find(name))
    with pytest.raises(DataError, match=r"reasoning-gym is not installed; pip install 'bs-cluster\[embedded\]'"):
        check_data(asked)
