"""Laws of the blobs: what goes in comes out, once, and damage never goes unseen."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_history import commit_round

from bs_cluster.errors import IntegrityError, NotInStoreError, StoreError
from bs_cluster.records import FileEntry, sha256_hex
from bs_cluster.store import Store, stage_entries
from bs_cluster.store.blobs import safe_name
from bs_cluster.store.filesystem import LocalFiles

KINDS = ("folder", "file-uri", "s3")
reuses_folder = settings(
    max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=KINDS)
def store(request, tmp_path) -> Store:
    if request.param == "s3":
        uri = request.getfixturevalue("s3_uri")
    else:
        uri = (tmp_path / "store").as_uri() if request.param == "file-uri" else str(tmp_path / "store")
    return Store(uri, "demo", cache=tmp_path / "cache")


def blob_path(store: Store, digest: str) -> Path:
    return Path(store.uri) / store.campaign / "blobs" / "sha256" / digest[:2] / digest


@reuses_folder
@given(data=st.binary(max_size=2000))
def test_what_is_put_is_got(store, data):
    entry = store.put_bytes("name", data)
    assert entry == store.put_bytes("name", data) == FileEntry("name", sha256_hex(data), len(data))
    assert store.get_bytes(entry.sha256) == data


def test_a_file_is_stored_as_its_bytes_are(store, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * 10_000)
    entry = store.put_file(path, "other.bin")
    assert entry == FileEntry("other.bin", sha256_hex(path.read_bytes()), 2_560_000)
    assert store.put_file(path).name == "weights.bin"
    assert store.get_bytes(entry.sha256) == path.read_bytes()


def test_an_absent_blob_is_named(store):
    with pytest.raises(NotInStoreError, match="a" * 64):
        store.get_bytes("a" * 64)


def test_opening_a_store_creates_nothing(tmp_path):
    store = Store(str(tmp_path / "store"), "demo")
    assert store.stacks() == store.domains() == store.bundles() == []
    assert not (tmp_path / "store").exists()


def test_a_relative_folder_means_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Store("stacks_store", "demo").uri == str(tmp_path / "stacks_store")


def test_an_unknown_uri_is_refused_with_the_way_out():
    with pytest.raises(StoreError, match="neither a folder nor an object store"):
        Store("gopher://old/store", "demo")


@reuses_folder
@given(data=st.binary(min_size=1, max_size=300), position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_a_flipped_byte_is_detected(tmp_path, data, position, flip):
    store = Store(str(tmp_path / "store"), "demo")
    entry = store.put_bytes("name", data)
    damaged = bytearray(data)
    damaged[position % len(data)] ^= flip
    blob_path(store, entry.sha256).write_bytes(damaged)
    with pytest.raises(IntegrityError) as caught:
        store.get_bytes(entry.sha256)
    assert entry.sha256 in str(caught.value)
    assert sha256_hex(bytes(damaged)) in str(caught.value)
    blob_path(store, entry.sha256).unlink()


@reuses_folder
@given(data=st.binary(min_size=1, max_size=300), keep=st.integers(0, 10**6))
def test_a_truncated_blob_is_detected_and_putting_it_again_heals(tmp_path, data, keep):
    store = Store(str(tmp_path / "store"), "demo")
    entry = store.put_bytes("name", data)
    blob_path(store, entry.sha256).write_bytes(data[: keep % len(data)])
    with pytest.raises(IntegrityError):
        store.get_bytes(entry.sha256)
    store.put_bytes("name", data)
    assert store.get_bytes(entry.sha256) == data


def test_a_file_that_changes_while_it_is_put_is_refused(store, tmp_path):
    path = tmp_path / "moving.bin"
    path.write_bytes(b"before")
    (entry,) = [entry for entry in stage_entries(tmp_path) if entry.name == "moving.bin"]
    path.write_bytes(b"after!")
    with pytest.raises(IntegrityError, match="changed while being copied"):
        store._blobs.put_entry(path, entry)
    with pytest.raises(NotInStoreError):
        store.get_bytes(entry.sha256)


def test_a_materialized_stack_is_the_committed_one(store, tmp_path):
    manifest = store.manifest(commit_round(store, tmp_path / "staged", "chat", 1).manifest)
    folder = store.materialize(manifest, tmp_path / "out" / "chat")
    assert stage_entries(folder) == stage_entries(tmp_path / "staged" / "chat_r1")
    (folder / "adapter_config.json").write_text("mine now")  # copies: writing into them leaves the store alone
    assert [problem.object for problem in store.verify().problems] == ["refs/campaign.json"]
    with pytest.raises(StoreError, match="is not empty"):
        store.materialize(manifest, folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", ""])
def test_names_cannot_lead_out_of_a_folder(name):
    with pytest.raises(IntegrityError, match="leads out"):
        safe_name(name)


def test_create_never_replaces(tmp_path, store):
    for files in (LocalFiles(tmp_path / "local"), store._files):
        assert files.create("refs/x.json", b"1")
        assert not files.create("refs/x.json", b"2")
        assert files.read("refs/x.json") == b"1"
        assert files.stamps("tmp") == {}


def test_stray_temporary_files_are_ignored_and_collected(store):
    store._files.write("tmp/stray", io.BytesIO(b"half"))
    assert store.stacks() == []
    assert store.collect_temporary() == []  # too young: it may be a write under way
    assert store.collect_temporary(older_than_s=-1) == ["tmp/stray"]
    assert store._files.stamps("tmp") == {}


def test_a_temporary_file_that_goes_while_others_are_collected_is_none_of_them(store, monkeypatch):
    files = store._files
    for name in ("tmp/gone", "tmp/stray"):
        files.write(name, io.BytesIO(b"half"))
    listed = files.stamps

    def stamps(folder):
        found = listed(folder)
        files.delete("tmp/gone")
        return found

    monkeypatch.setattr(files, "stamps", stamps)
    assert store.collect_temporary(older_than_s=-1) == ["tmp/stray"]


def test_sweep_parts_are_read_in_the_order_asked_for(store):
    area = store.sweep_area("s" * 64)
    assert area.read(area.parts()) is None
    area.write_part(2, 3, pa.table({"row": [3], "loss": [0.3]}))
    area.write_part(0, 1, pa.table({"row": [1, 2], "loss": [0.1, 0.2]}))
    area.write_part(2, 3, pa.table({"row": [3], "loss": [0.3]}))  # the same again
    assert [(part.first, part.last) for part in area.parts()] == [(0, 1), (2, 3)]
    assert area.read(area.parts()).to_pydict() == {"row": [1, 2, 3], "loss": [0.1, 0.2, 0.3]}
    assert area.read(area.parts()[1:]).to_pydict() == {"row": [3], "loss": [0.3]}
    assert store.sweep_area("t" * 64).parts() == []
