"""The store proves itself: what an audit finds, what a repair mends and leaves alone, what a collection keeps."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_history import bundle_manifest, commit_round, domain_record, stack_manifest, write_files

from bs_cluster.errors import IntegrityError, RefExistsError, StoreError
from bs_cluster.records import StackId, StackRef, canonical_json
from bs_cluster.store import Store
from bs_cluster.store.blobs import blob_name


def finished(folder: Path) -> Store:
    """Two domains, three stacks, two claims, a bundle: seven commits with the identity."""
    store = Store(str(folder / "store"), "demo")
    store.pin_identity({"config": "one"})
    store.take_epoch()
    for position, (domain, rounds) in enumerate({"chat": 2, "math": 1}.items()):
        for number in range(1, rounds + 1):
            commit_round(store, folder / "staged", domain, number, position)
        claim = store.put_bytes("claim", b"directions of " + domain.encode()).sha256
        store.close_domain(dataclasses.replace(domain_record(store, domain, position), basis=claim))
    store.commit_bundle(bundle_manifest(store))
    return store


def root(store: Store) -> Path:
    return Path(store.uri) / store.campaign


def afresh(store: Store) -> Store:
    """As another process sees it."""
    return Store(store.uri, store.campaign)


def weights(store: Store, number: int = 0) -> Path:
    return root(store) / blob_name(store.stacks()[number][1].file("adapter_model.safetensors").sha256)


@pytest.fixture
def store(tmp_path) -> Store:
    return finished(tmp_path)


def test_a_sound_store_is_found_sound_and_nothing_is_mended(store):
    found = store.verify()
    assert (found.sound, found.refs) == (True, 7)
    assert found.blobs == len(list((root(store) / "blobs/sha256").glob("*/*")))
    before = store._files.stamps("")
    repaired = store.repair()
    assert (repaired.mended, repaired.left.sound) == ((), True)
    assert store._files.stamps("") == before


def test_the_history_tells_every_commit_in_order(store):
    assert [entry.ref for entry in store.history()] == [
        "refs/campaign.json",
        "refs/stacks/chat/1.json",
        "refs/stacks/chat/2.json",
        "refs/domains/chat/1.json",
        "refs/stacks/math/1.json",
        "refs/domains/math/1.json",
        "refs/bundles/1.json",
    ]


def test_every_damage_at_once_is_told_with_its_object_and_a_way_out(store):
    claim, rotten = root(store) / blob_name(store.domains()[0].basis or ""), weights(store)
    rotten.write_bytes(b"rotten")
    claim.unlink()
    (root(store) / "refs/stacks/chat/2.json").write_text(json.dumps(StackRef(StackId("chat", 2), "f" * 64).to_dict()))
    (root(store) / "refs/bundles/1.json").write_text("{")
    (root(store) / "refs/stacks/chat/1.json~").write_text("{}")
    found = {(problem.kind, problem.object) for problem in store.verify().problems}
    assert {
        ("damaged", str(rotten.relative_to(root(store)))),
        ("missing", str(claim.relative_to(root(store)))),
        ("disagrees", "refs/stacks/chat/2.json"),
        ("damaged", "refs/bundles/1.json"),
        ("planted", "refs/stacks/chat/1.json~"),
    } <= found
    assert all(problem.what and problem.way_out for problem in store.verify().problems)


def test_an_old_but_valid_ref_put_back_is_noticed_and_mended(tmp_path):
    store = Store(str(tmp_path / "store"), "demo")
    first = commit_round(store, tmp_path / "staged", "chat", 1)
    old = (root(store) / "refs/stacks/chat/1.json").read_bytes()
    other = Store(str(tmp_path / "other"), "demo")
    folder = write_files(tmp_path / "second", seed=9)
    other.commit_stack(stack_manifest(other, folder, "chat", 1), folder)
    commit_round(other, tmp_path / "staged_two", "chat", 2)
    shutil.copytree(root(store) / "blobs", root(other) / "blobs", dirs_exist_ok=True)
    (root(other) / "refs/stacks/chat/1.json").write_bytes(old)  # leads to a whole manifest, once committed elsewhere
    assert other.manifest(first.manifest).stack == StackId("chat", 1)
    with pytest.raises(IntegrityError, match=r"refs/stacks/chat/1\.json is not what was committed"):
        afresh(other).stacks()
    assert "written anew from history/1.json" in other.repair().mended[1].what
    assert [ref.stack.round for ref, _ in afresh(other).stacks()] == [1, 2]


@pytest.mark.parametrize("ref", ["refs/stacks/chat/1.json", "refs/stacks/math", "refs/domains", "refs/bundles/1.json"])
def test_refs_that_are_gone_do_not_make_a_shorter_history(store, ref):
    path = root(store) / ref
    before = {**store._refs.all()}
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    for read in (afresh(store).stacks, afresh(store).domains, afresh(store).bundles, store.history):
        with pytest.raises(IntegrityError, match="is missing"):
            read()
    assert store.repair().left.sound
    assert afresh(store)._refs.all() == before


@pytest.mark.parametrize("number", [1, 3, 7])
def test_a_lost_entry_is_written_anew_with_the_same_bytes(store, number):
    path = root(store) / f"history/{number}.json"
    before = path.read_bytes()
    path.unlink()
    assert not afresh(store).verify().sound
    assert store.repair().left.sound
    assert path.read_bytes() == before


def test_a_history_that_is_wholly_gone_is_begun_anew_from_the_refs(store):
    shutil.rmtree(root(store) / "history")
    with pytest.raises(IntegrityError, match="are in no entry of the history"):
        afresh(store).stacks()
    assert afresh(store).repair().left.sound
    assert len(afresh(store).stacks()) == 3


def test_where_nothing_intact_tells_a_repair_leaves_it_and_a_copy_mends_it(store, tmp_path):
    copy = Store(str(tmp_path / "copy"), "demo")
    shutil.copytree(root(store), root(copy))
    weights(store).write_bytes(b"rotten")
    (root(store) / "refs/domains/chat/1.json").unlink()
    (root(store) / "history/4.json").unlink()
    left = store.repair().left
    assert {problem.kind for problem in left.problems} >= {"damaged", "missing"}
    assert store.repair(copy).left.sound
    assert afresh(store).stacks() == copy.stacks()


def test_a_copy_that_is_not_sound_mends_nothing(store, tmp_path):
    copy = Store(str(tmp_path / "copy"), "demo")
    shutil.copytree(root(store), root(copy))
    weights(copy).write_bytes(b"rotten")
    with pytest.raises(StoreError, match="the copy is not sound"):
        store.repair(copy)


def test_planted_files_and_pipes_are_moved_aside_and_never_opened(store):
    os.mkfifo(root(store) / "refs/stacks/chat/3.json")
    (root(store) / "blobs/sha256/zz").mkdir()
    (root(store) / "blobs/sha256/zz/weights.bin").write_bytes(b"a pickle")
    (root(store) / "refs/stacks/chat/01.json").symlink_to("1.json")
    with pytest.raises(IntegrityError, match="no regular file"):
        afresh(store).stacks()
    repaired = store.repair()
    assert (repaired.left.sound, len(repaired.mended)) == (True, 3)
    assert len(list((root(store) / "aside").glob("*/*/*/*"))) == 3


def test_a_store_that_vanishes_under_a_running_process_is_no_empty_store(store):
    assert len(store.stacks()) == 3
    shutil.rmtree(root(store))
    with pytest.raises(IntegrityError, match="lost history under a running process"):
        store.stacks()


def test_blobs_without_refs_are_no_new_campaign(store):
    shutil.rmtree(root(store) / "refs")
    shutil.rmtree(root(store) / "history")
    with pytest.raises(IntegrityError, match="its history was lost"):
        afresh(store).pin_identity({"config": "one"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_no_empty_store(store):
    folder = root(store) / "refs" / "stacks"
    folder.chmod(0)
    try:
        with pytest.raises(StoreError, match="cannot be listed"):
            afresh(store).stacks()
    finally:
        folder.chmod(0o755)


def test_a_file_in_place_of_a_folder_is_no_empty_store(store):
    shutil.rmtree(root(store) / "refs")
    (root(store) / "refs").write_text("")
    with pytest.raises(StoreError):
        afresh(store).stacks()


def test_collection_keeps_what_is_committed_and_what_is_young(store):
    kept = store._files.stamps("blobs")
    stray = store.put_bytes("stray", b"of a round that was never committed")
    (root(store) / "tmp" / "half").write_bytes(b"half")
    assert store.gc().blobs == ()
    long_ago = 1_000_000_000
    for path in root(store).rglob("*"):
        os.utime(path, (long_ago, long_ago))
    store.put_bytes("stray", b"of a round that was never committed")  # a commit under way stages it again
    assert store.gc().blobs == ()
    os.utime(root(store) / blob_name(stray.sha256), (long_ago, long_ago))
    collected = store.gc()
    assert (collected.blobs, collected.bytes, collected.temporary) == ((stray.sha256,), stray.size, ())
    assert set(store._files.stamps("blobs")) == set(kept)
    assert store.verify().sound


def test_collection_deletes_nothing_when_the_history_cannot_be_read(store):
    blobs = store._files.stamps("blobs")
    (root(store) / "refs/stacks/math/1.json").unlink()
    with pytest.raises(IntegrityError):
        afresh(store).gc(older_than_s=-1)
    assert store._files.stamps("blobs") == blobs


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 7},
        {"schema_version": True},
        {"position": "0"},
        {"metrics": {"val_after": float("nan")}},
        {"files": [{"name": "adapter_config.json", "sha256": "../../../etc/passwd", "size": 1}]},
        {"stack": {"domain": "math", "round": 1}},
        {"campaign": "other"},
        {"surprise": 1},
    ],
)
def test_a_forged_manifest_with_a_valid_digest_is_refused(tmp_path, change):
    """A consistent forgery up to the ref: what is refused is what it says."""
    store = Store(str(tmp_path / "store"), "demo")
    manifest = store.manifest(commit_round(store, tmp_path / "staged", "chat", 1).manifest)
    text = json.dumps({**manifest.to_dict(), **change}, sort_keys=True, separators=(",", ":")).encode()
    forged = store.put_bytes("manifest", text).sha256
    ref = canonical_json(StackRef(manifest.stack, forged).to_dict())
    (root(store) / "refs/stacks/chat/1.json").write_bytes(ref)
    shutil.rmtree(root(store) / "history")
    with pytest.raises(IntegrityError):
        [store.load_stack(found) for _, found in afresh(store).stacks()]


def test_a_record_that_does_not_tell_its_refs_is_refused(store):
    """Record and history forged alike."""
    name = root(store) / "refs/domains/math/1.json"
    record = json.loads(name.read_bytes())
    record["rounds"] = []
    name.write_bytes(canonical_json(record))
    entry = root(store) / "history/6.json"
    entry.write_bytes(canonical_json({**json.loads(entry.read_bytes()), "content": record}))
    (root(store) / "history/7.json").unlink()
    with pytest.raises(IntegrityError, match="does not tell the rounds"):
        afresh(store).domains()


def test_another_base_is_refused_before_it_is_committed(store, tmp_path):
    folder = write_files(tmp_path / "staged" / "code", stack=StackId("code", 1), position=2)
    manifest = stack_manifest(store, folder, "code", 1, position=2)
    foreign = dataclasses.replace(manifest, base=dataclasses.replace(manifest.base, digest="e" * 64))
    with pytest.raises(StoreError, match="a campaign has one base"):
        store.commit_stack(foreign, folder)


def test_a_crash_between_ref_and_entry_is_mended_by_the_next_writer(store, tmp_path):
    (root(store) / "history/7.json").unlink()
    reader = afresh(store)
    assert len(reader.bundles()) == 1  # the ref is the commit
    reader.pin_identity({"config": "one"})
    assert [entry.ref for entry in reader.history()][-1] == "refs/bundles/1.json"
    with pytest.raises(RefExistsError):
        reader.commit_bundle(dataclasses.replace(bundle_manifest(store), code_version="other"))


def test_promotions_are_entered_after_their_bundles_where_a_history_is_gone(store):
    store.promote(1, "champion", "guarded", "the first bundle")
    store.commit_bundle(bundle_manifest(store, 2))
    store.promote(2, "challenger", "guarded", "worse")
    shutil.rmtree(root(store) / "history")
    assert not afresh(store).verify().sound
    assert afresh(store).repair().left.sound
    assert [entry.ref for entry in afresh(store).history()][-4:] == [
        "refs/bundles/1.json",
        "refs/bundles/2.json",
        "refs/promotions/1.json",
        "refs/promotions/2.json",
    ]
    assert afresh(store).standing() == store.standing()


@pytest.mark.parametrize("change", [{"manifest": "e" * 64}, {"bundle": 2}, {"alias": "production"}, {"number": 2}])
def test_a_promotion_of_what_was_never_committed_is_found(store, change):
    """Forged as a whole: the ref and its entry, the newest, agree."""
    store.promote(1, "champion", "guarded", "the first bundle")
    ref, entry = root(store) / "refs/promotions/1.json", root(store) / "history/8.json"
    forged = {**json.loads(ref.read_text()), **change}
    ref.write_bytes(canonical_json(forged))
    entry.write_bytes(canonical_json({**json.loads(entry.read_text()), "content": forged}))
    with pytest.raises(IntegrityError, match=r"refs/promotions/1\.json"):
        afresh(store).standing()
    assert [problem.kind for problem in afresh(store).verify().problems] == ["disagrees"]


def test_a_promotion_that_is_gone_is_written_anew_from_the_history(store):
    store.promote(1, "champion", "guarded", "the first bundle")
    standing = store.standing()
    shutil.rmtree(root(store) / "refs/promotions")
    with pytest.raises(IntegrityError, match="is missing"):
        afresh(store).standing()
    assert afresh(store).repair().left.sound
    assert afresh(store).standing() == standing
