"""Retirement in the store: a new fact, never a deletion; and bytes that are erased on request are no damage."""

import dataclasses
from pathlib import Path

import pytest
from tiny_history import bundle_manifest, close_after, commit_round, domain_record, stack_manifest, write_files

from bs_cluster.errors import IntegrityError, NotInStoreError, OutOfOrderError, StoreError
from bs_cluster.records import MERGED, REMOVED, REPLACED, ROLLED_BACK, StackId
from bs_cluster.retirement import Request, plan
from bs_cluster.store import Store
from bs_cluster.store.blobs import blob_name


@pytest.fixture
def held(tmp_path):
    """chat of two rounds, math and code of one, all closed; a bundle of them that is champion."""
    store = Store(str(tmp_path / "store"), "demo")
    store.pin_identity({"config": "one"})
    for position, (domain, rounds) in enumerate({"chat": 2, "math": 1, "code": 1}.items()):
        close_after(store, tmp_path / "staged", domain, rounds, position)
        store.commit_bundle(bundle_manifest(store, position + 1))
    store.promote(2, "champion", "guarded", "the first")
    store.promote(3, "champion", "guarded", "better")
    return store


def retire(store: Store, domain: str, fate: str, **more):
    request = Request(domain, fate, reason="licence", when="2026-11-28T00:00:00+00:00", **more)
    found = plan(request, len(store.retirements()) + 1, store.live(), store.stacks())
    assert found is not None
    store.retire(found)
    return found


def names(store: Store) -> list[str]:
    return [ref.stack.name for ref, _ in store.stacks()]


def contents(store: Store) -> dict[str, bytes]:
    root = Path(store.uri) / "demo"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.json") if path.is_file()}


def test_nothing_that_was_written_changes_and_nothing_is_collected(held):
    before = contents(held)
    retire(held, "math", REMOVED)
    assert {name: content for name, content in contents(held).items() if name in before} == before
    assert names(held) == ["chat_r1", "chat_r2", "code_r1"]
    assert len(held.every_stack()) == 4
    assert held.verify().sound
    assert held.gc(0).blobs == ()
    assert [bundle.number for _, _, bundle in held.bundles()] == [1, 2, 3]


def test_the_same_retirement_again_is_a_no_op_and_another_of_that_number_is_refused(held):
    found = retire(held, "math", REMOVED)
    held.retire(found)
    assert len(held.retirements()) == 1
    with pytest.raises(StoreError):
        held.retire(dataclasses.replace(found, reason="another"))


def test_a_bundle_that_holds_it_is_served_on_but_never_promoted(held):
    retire(held, "code", REMOVED)
    standing = held.standing()
    assert standing.champion is not None
    assert standing.champion.bundle == 3
    with pytest.raises(StoreError, match="holds code_r1, which was retired"):
        held.promote(3, "champion", "hand", "all the same")
    held.promote(1, "champion", "hand", "without it")
    assert held.standing().former == (held.promotions()[0],), "bundle 3 is nothing to roll back to"


def test_a_withdrawn_champion_leaves_its_place_to_the_one_before(held):
    retire(held, "code", REMOVED, withdrawn=True)
    champion = held.standing().champion
    assert champion is not None
    assert champion.bundle == 2
    retire(held, "math", REMOVED, withdrawn=True)
    assert held.standing().champion is None


def test_a_bundle_of_retired_stacks_cannot_be_committed(held):
    bundle = bundle_manifest(held, 4)
    retire(held, "math", REMOVED)
    with pytest.raises(StoreError, match="was retired"):
        held.commit_bundle(bundle)


def test_a_replaced_domain_goes_on_counting_and_closes_a_second_time(held, tmp_path):
    first = held.live().closings["math"]
    retire(held, "math", REPLACED)
    ref = commit_round(held, tmp_path / "again", "math", 2, 3)
    held.close_domain(domain_record(held, "math", 3))
    assert names(held) == ["chat_r1", "chat_r2", "code_r1", "math_r2"]
    assert [record.domain for record in held.domains()] == ["chat", "code", "math"]
    assert held.verify().sound
    with pytest.raises(OutOfOrderError, match="is closed"):
        commit_round(held, tmp_path / "more", "math", 3, 3)
    number, _, bundle = held.bundles()[1]
    assert held.closings_of(bundle) == [held.domains()[0], first], f"bundle {number} stands on the first closing"
    assert ref in held.live().stacks


class TestMerged:
    @pytest.fixture
    def manifest(self, held, tmp_path):
        """One stack for chat's two rounds, its files in the store."""
        folder = write_files(tmp_path / "merged", 3, stack=StackId("chat", 3))
        held.upload_stack(folder)
        return dataclasses.replace(stack_manifest(held, folder, "chat", 3), parents=())

    def test_it_waits_beside_a_closed_domain_and_takes_its_rounds_place_in_one_commit(self, held, manifest):
        closed = held.live().closings["chat"]
        with pytest.raises(OutOfOrderError, match="is closed"):
            held.publish_stack(manifest)
        into = held.publish_stack(manifest, waits=True)
        assert names(held) == ["chat_r1", "chat_r2", "math_r1", "code_r1"]
        assert held.verify().sound
        assert held.gc(0).blobs == (), "what waits is not garbage"
        held.commit_bundle(bundle_manifest(held, 4))
        retire(held, "chat", MERGED, into=into)
        assert names(held) == ["chat_r3", "math_r1", "code_r1"]
        assert held.live().reopened == {"chat": closed}
        held.close_domain(domain_record(held, "chat"))
        assert held.verify().sound
        assert held.gc(0).blobs == ()

    def test_bundles_with_its_rounds_may_be_served_until_the_domain_is_taken_out(self, held, manifest):
        retire(held, "chat", MERGED, into=held.publish_stack(manifest, waits=True))
        assert held.out_of_date() == (frozenset(), frozenset())
        held.promote(2, "champion", "hand", "its rounds after all")
        held.close_domain(domain_record(held, "chat"))
        retire(held, "chat", REMOVED)
        assert held.out_of_date()[0] == {1, 2, 3}
        weights = [stack.file("adapter_model.safetensors").sha256 for _, stack in held.every_stack()]
        assert [digest in held.erasable("chat") for digest in weights] == [True, True, True, False, False]

    def test_what_waits_is_nothing_to_build_on(self, held, manifest, tmp_path):
        into = held.publish_stack(manifest, waits=True)
        retire(held, "math", REPLACED)
        folder = write_files(tmp_path / "again", 4, stack=StackId("math", 2))
        held.upload_stack(folder)
        again = dataclasses.replace(stack_manifest(held, folder, "math", 2, 3), parents=(into,))
        with pytest.raises(StoreError, match="chat_r3, which never took its rounds' place"):
            held.publish_stack(again)

    def test_only_beside_a_closed_domain(self, held, manifest):
        retire(held, "chat", ROLLED_BACK)
        with pytest.raises(OutOfOrderError, match="cannot wait: domain chat is not closed"):
            held.publish_stack(manifest, waits=True)

    def test_one_that_does_not_wait_is_not_brought_in(self, held, manifest):
        request = Request("chat", MERGED, into=held.publish_stack(manifest, waits=True))
        found = plan(request, 1, held.live(), held.stacks())
        assert found is not None
        with pytest.raises(IntegrityError, match="brings in another stack"):
            held.retire(dataclasses.replace(found, into=held.live().stacks[0]))
        assert held.retirements() == []


def test_no_round_of_a_removed_domain_is_taken(held, tmp_path):
    retire(held, "math", REMOVED)
    with pytest.raises(OutOfOrderError, match="was removed"):
        commit_round(held, tmp_path / "again", "math", 2, 3)


def test_a_rolled_back_domain_closes_on_what_it_has_left(held):
    retire(held, "chat", ROLLED_BACK)
    assert list(held.live().reopened) == ["chat"]
    held.close_domain(domain_record(held, "chat"))
    assert [record.domain for record in held.domains()] == ["math", "code", "chat"]
    assert held.verify().sound


class TestErased:
    @pytest.fixture
    def erased(self, held):
        retire(held, "math", REMOVED, withdrawn=True)
        fact = held.erase("math", "licence", "now")
        assert fact is not None
        return fact

    def test_is_no_damage_and_says_so(self, held, erased):
        assert erased.digests
        assert all(size > 0 for size in erased.digests.values())
        assert held.verify().sound
        for digest in erased.digests:
            with pytest.raises(NotInStoreError):
                held.get_bytes(digest)

    def test_what_the_others_need_is_all_there(self, held, erased):
        for _, manifest in held.stacks():
            held.load_stack(manifest)
        for record in held.domains():
            held.get_bytes(record.rows)
        for entry in held.bundles()[0][2].files:
            held.get_bytes(entry.sha256)
        (retired,) = [manifest for ref, manifest in held.every_stack() if ref in held.live().retired]
        with pytest.raises(NotInStoreError):
            held.load_stack(retired)

    def test_the_same_request_again_erases_what_was_interrupted(self, held, erased):
        digest = next(iter(erased.digests))
        path = Path(held.uri) / "demo" / blob_name(digest)
        path.write_bytes(b"back")
        problems = Store(held.uri, "demo").verify().problems
        assert {problem.object for problem in problems} == {blob_name(digest)}
        assert held.erase("math", "licence", "later") == erased
        assert not path.exists()
        assert held.verify().sound

    def test_a_repair_brings_nothing_back(self, held, tmp_path, erased):
        repaired = held.repair()
        assert repaired.left.sound
        assert repaired.mended == ()

    def test_another_blob_that_is_missing_is_damage(self, held, erased):
        digest = held.domains()[0].rows
        (Path(held.uri) / "demo" / blob_name(digest)).unlink()
        assert [problem.kind for problem in held.verify().problems] == ["missing"]


def test_a_lost_entry_of_a_retirement_is_written_anew(held):
    retire(held, "math", REMOVED)
    number = len(held.history())
    (Path(held.uri) / f"demo/history/{number}.json").unlink()
    fresh = Store(held.uri, "demo")
    assert names(fresh) == ["chat_r1", "chat_r2", "code_r1"], "a crash may leave the entry out"
    fresh.repair()
    assert Store(held.uri, "demo").verify().sound
