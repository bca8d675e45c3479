"""Many writers, one winner: on a disk and on a real S3 server; and what is no place for a store."""

from __future__ import annotations

import io
import multiprocessing
import threading
from pathlib import Path

import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from tiny_history import bundle_manifest, commit_round, domain_record
from werkzeug.serving import make_server

from bs_cluster.errors import FencedError, IntegrityError, StoreError
from bs_cluster.records import sha256_hex
from bs_cluster.store import Store
from bs_cluster.store.remote import PART_BYTES, RANGE_BYTES

RACES = 100


@pytest.fixture(params=["folder", "s3"])
def uri(request, tmp_path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_uri")


def race(uri: str, who: int, start, won) -> None:
    """Creates the same names as the other process, each at the same moment."""
    store = Store(uri, "demo")
    store.take_epoch()
    for number in range(RACES):
        start.wait(60)
        if store._files.create(f"refs/race/{number}.json", b"%d" % who):
            won[number] += 1 + who


def test_of_two_processes_one_creates_each_name(uri):
    spawn = multiprocessing.get_context("spawn")
    start, won = spawn.Barrier(2), spawn.Array("i", RACES)
    racers = [spawn.Process(target=race, args=(uri, who, start, won)) for who in (0, 1)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(180)
        assert racer.exitcode == 0
    files = Store(uri, "demo")._files
    # 1 when the first process alone won, 2 the second, 3 both, 0 none.
    assert set(won) <= {1, 2}
    assert [int(files.read(f"refs/race/{number}.json")) + 1 for number in range(RACES)] == list(won)


def test_a_coordinator_that_comes_back_loses_and_says_so(uri, tmp_path):
    paused, newer = Store(uri, "demo"), Store(uri, "demo")
    paused.pin_identity({"config": "one"})
    assert paused.take_epoch() == 1
    commit_round(paused, tmp_path / "staged", "chat", 1)
    assert newer.take_epoch() == 2
    with pytest.raises(FencedError, match=r"epoch 1, the store is in epoch 2.*stop it"):
        paused.check_epoch(1)
    with pytest.raises(FencedError):
        commit_round(paused, tmp_path / "staged", "chat", 2)
    with pytest.raises(FencedError):
        paused.close_domain(domain_record(paused, "chat"))
    with pytest.raises(FencedError):
        paused.commit_bundle(bundle_manifest(paused))
    newer.check_epoch(2)
    commit_round(newer, tmp_path / "staged", "chat", 2)
    assert [ref.stack.round for ref, _ in paused.stacks()] == [1, 2]


def test_a_finished_store_is_sound_on_s3_as_well(s3_uri, tmp_path):
    store = Store(s3_uri, "demo", cache=tmp_path / "cache")
    store.pin_identity({"config": "one"})
    for number in (1, 2):
        commit_round(store, tmp_path / "staged", "chat", number)
    store.close_domain(domain_record(store, "chat"))
    store.commit_bundle(bundle_manifest(store))
    assert store.verify().sound
    assert store.gc(older_than_s=-1).blobs == ()
    manifest = store.stacks()[0][1]
    first, again = store.load_stack(manifest), store.load_stack(manifest)  # from the service, then from the cache
    assert all((first.tensors[key] == again.tensors[key]).all() for key in first.tensors)
    entry = manifest.file("adapter_model.safetensors")
    (cached,) = (tmp_path / "cache").rglob(entry.sha256)
    cached.write_bytes(bytes(entry.size))  # a cache that rots is fetched anew
    assert (store.load_stack(manifest).tensors[min(first.tensors)] == first.tensors[min(first.tensors)]).all()
    store._files.write(f"blobs/sha256/{entry.sha256[:2]}/{entry.sha256}", io.BytesIO(b"rotten"))
    assert not store.verify().sound
    store.put_file(tmp_path / "staged" / "chat_r1" / "adapter_model.safetensors")
    assert store.verify().sound


def test_large_files_go_up_in_parts_and_come_down_in_ranges(s3_uri, tmp_path):
    store = Store(s3_uri, "demo", cache=tmp_path / "cache")
    data = bytes(range(256)) * ((RANGE_BYTES + PART_BYTES) // 256) + b"the end"
    entry = store.put_bytes("large", data)
    assert store.get_bytes(entry.sha256) == data
    with pytest.raises(IntegrityError, match="changed while being copied"):
        store._files.write("large", io.BytesIO(data), sha256_hex(b"other"))
    assert store._files.size("large") is None
    assert store._files.stamps("tmp") == {}


def test_a_store_that_cannot_create_only_what_is_absent_is_refused(tmp_path, monkeypatch):
    """A real S3 server behind one that drops the condition, as gateways do that do not know it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    s3 = DomainDispatcherApplication(create_backend_app)

    def careless(environ, start_response):
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return s3(environ, start_response)

    server = make_server("127.0.0.1", 0, careless, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        import boto3  # noqa: PLC0415 - after the keys are set

        endpoint = f"127.0.0.1:{server.server_port}"
        boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1").create_bucket(Bucket="careless")
        store = Store(f"s3://careless/x?endpoint_override={endpoint}&scheme=http&region=us-east-1", "demo")
        with pytest.raises(StoreError, match="9 of 9 writers believed to have created one object"):
            store.take_epoch()
        assert store._files.stamps("") == {}
    finally:
        server.shutdown()
        thread.join(20)


@pytest.mark.parametrize("uri", ["s3://key:secret@bucket/x", "gs://token@bucket/x", "s3://bucket/x?secret_key=secret"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(StoreError) as caught:
        Store(uri, "demo")
    assert "'secret'" not in str(caught.value)
    assert "key:secret" not in str(caught.value)
    assert "token@" not in str(caught.value)


@pytest.mark.parametrize("uri", ["hdfs://host/x", "http://host/x", "fsspec+memory://x", "s3:///no-bucket"])
def test_what_promises_no_single_winner_is_no_store(uri):
    with pytest.raises(StoreError, match=r"store\.uri"):
        Store(uri, "demo")


def test_a_service_that_is_away_is_told_in_bounded_time(monkeypatch, s3_uri, s3_server):
    store = Store(s3_uri.replace(s3_server, "127.0.0.1:9"), "demo")
    with pytest.raises(StoreError, match=r"cannot be (read|listed): .*look after the service"):
        store.stacks()


def test_a_full_disk_leaves_no_temporary_file(tmp_path):
    store = Store(str(tmp_path / "store"), "demo")

    class Full(io.BytesIO):
        def read(self, *_: int) -> bytes:
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"No space left on device\); make room"):
        store._files.write("blobs/x", Full())
    assert list(Path(store.uri).rglob("tmp/*")) == []
