"""Laws of the history: one ref per round, nothing unfit is frozen, nothing committed is rewritten."""

import dataclasses
import pickle
from pathlib import Path

import pytest
import torch
from tiny_history import SITES, bundle_manifest, commit_round, domain_record, stack_manifest, stack_tensors, write_files

from bs_cluster.errors import FencedError, IntegrityError, NotInStoreError, OutOfOrderError, RefExistsError, StoreError
from bs_cluster.records import FileEntry, StackId, StackRef
from bs_cluster.store import Store


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path) -> Store:
    uri = str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_uri")
    return Store(uri, "demo", cache=tmp_path / "cache")


@pytest.fixture
def staged(tmp_path) -> Path:
    return write_files(tmp_path / "staged")


def refused(store: Store, folder: Path, match: str, error: type[Exception] = IntegrityError) -> None:
    with pytest.raises(error, match=match):
        store.commit_stack(stack_manifest(store, folder, "chat", 1), folder)
    assert store.stacks() == []


def test_a_commit_is_found_again(store, staged):
    manifest = stack_manifest(store, staged, "chat", 1)
    ref = store.commit_stack(manifest, staged)
    assert ref == StackRef(StackId("chat", 1), manifest.digest())
    assert store.stacks() == [(ref, manifest)]
    assert pickle.loads(pickle.dumps(store)).stacks() == [(ref, manifest)]


def test_committing_again_is_a_no_op_even_without_the_staged_files(store, staged):
    manifest = stack_manifest(store, staged, "chat", 1)
    ref = store.commit_stack(manifest, staged)
    before = store._files.stamps("")
    assert store.commit_stack(manifest, Path("/gone")) == ref
    assert store._files.stamps("") == before


def test_another_manifest_at_the_same_round_is_refused_and_both_are_named(store, staged, tmp_path):
    first = store.commit_stack(stack_manifest(store, staged, "chat", 1), staged)
    other_files = write_files(tmp_path / "other", seed=7)
    other = dataclasses.replace(stack_manifest(store, other_files, "chat", 1), parents=(), context=())
    with pytest.raises(RefExistsError) as caught:
        store.commit_stack(other, other_files)
    assert first.manifest in str(caught.value)
    assert other.digest() in str(caught.value)


def test_stacks_are_ordered_by_curriculum_whatever_order_they_came_in(store, tmp_path):
    for domain, number, position in [("math", 1, 1), ("chat", 1, 0), ("math", 2, 1), ("chat", 2, 0)]:
        commit_round(store, tmp_path / "staged", domain, number, position)
    assert [ref.stack.name for ref, _ in store.stacks()] == ["chat_r1", "chat_r2", "math_r1", "math_r2"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_that_is_not_finite_is_refused_by_name(store, tmp_path, bad, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in stack_tensors(0).items()}
    tensors[f"{SITES[1]}.stack_B"][1, 2, 3] = bad
    refused(store, write_files(tmp_path / "bad", tensors=tensors), f"{SITES[1]}.stack_B holds NaN or infinity")


def test_a_site_that_lacks_a_tensor_is_refused(store, tmp_path):
    tensors = stack_tensors(0)
    del tensors[f"{SITES[0]}.stack_router"]
    refused(store, write_files(tmp_path / "bad", tensors=tensors), r"q_proj lacks \['stack_router'\]")


def test_a_stack_without_tensors_is_refused(store, tmp_path):
    refused(store, write_files(tmp_path / "bad", tensors={}), "no tensor at all")


@pytest.mark.parametrize("key", ["stack_A", f"{SITES[0]}.lora_A"])
def test_a_foreign_tensor_is_refused(store, tmp_path, key):
    refused(store, write_files(tmp_path / "bad", tensors=stack_tensors(0) | {key: torch.ones(2)}), "is no stack tensor")


@pytest.mark.parametrize(
    ("kind", "shape"), [("stack_A", (2, 2, 4)), ("stack_B", (3, 3, 5)), ("stack_router", (2, 5)), ("stack_noise", (8,))]
)
def test_shapes_that_do_not_fit_each_other_are_refused(store, tmp_path, kind, shape):
    tensors = stack_tensors(0) | {f"{SITES[0]}.{kind}": torch.ones(shape)}
    refused(store, write_files(tmp_path / "bad", tensors=tensors), "has the shapes")


def test_a_truncated_weights_file_is_refused(store, staged):
    weights = staged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    refused(store, staged, "not a whole safetensors file")


@pytest.mark.parametrize("text", ["not json", "[]"])
def test_a_config_that_is_no_json_object_is_refused(store, staged, text):
    (staged / "adapter_config.json").write_text(text)
    refused(store, staged, "JSON")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_refused(store, staged, name):
    (staged / name).unlink()
    refused(store, staged, f"has no {name}")


def test_a_manifest_finds_its_files_by_name_and_names_them_where_it_does_not(store, staged):
    manifest = stack_manifest(store, staged, "chat", 1)
    assert manifest.file("history.jsonl") in manifest.files
    with pytest.raises(NotInStoreError, match=r"names no file 'router\.json'; its files are adapter_config\.json, "):
        manifest.file("router.json")


def test_files_that_are_not_those_of_the_manifest_are_refused(store, staged):
    manifest = stack_manifest(store, staged, "chat", 1)
    (staged / "history.jsonl").write_text("{}")
    (staged / "extra.txt").write_text("")
    with pytest.raises(IntegrityError, match=r"only in the manifest: \['history.jsonl.*only staged: \['extra.txt"):
        store.commit_stack(manifest, staged)


def test_a_manifest_with_a_loss_that_is_nan_is_refused(store, staged):
    manifest = dataclasses.replace(stack_manifest(store, staged, "chat", 1), metrics={"val_after": float("nan")})
    with pytest.raises(IntegrityError, match="manifest of chat_r1 holds NaN"):
        store.commit_stack(manifest, staged)


def test_a_parent_must_be_committed(store, staged):
    orphan = dataclasses.replace(
        stack_manifest(store, staged, "chat", 2), parents=(StackRef(StackId("chat", 1), "f" * 64),)
    )
    with pytest.raises(NotInStoreError, match="builds on chat_r1, which is not committed"):
        store.commit_stack(orphan, staged)


def test_a_stack_of_another_campaign_is_refused(store, staged):
    with pytest.raises(StoreError, match="'other'"):
        store.commit_stack(dataclasses.replace(stack_manifest(store, staged, "chat", 1), campaign="other"), staged)


def test_a_closed_domain_takes_no_further_round(store, staged, tmp_path):
    commit_round(store, tmp_path / "rounds", "chat", 1)
    record = domain_record(store, "chat", rejected=1)
    store.close_domain(record)
    store.close_domain(record)
    assert store.domains() == [record]
    with pytest.raises(OutOfOrderError, match="chat is closed"):
        store.commit_stack(stack_manifest(store, staged, "chat", 2), staged)
    with pytest.raises(RefExistsError, match=record.digest()):
        store.close_domain(dataclasses.replace(record, seconds=13.0))


def test_a_domain_record_must_tell_what_is_committed(store, tmp_path):
    empty = domain_record(store, "chat")
    commit_round(store, tmp_path / "rounds", "chat", 1)
    with pytest.raises(StoreError, match="chat_r1"):
        store.close_domain(empty)
    with pytest.raises(NotInStoreError, match="basis"):
        store.close_domain(dataclasses.replace(domain_record(store, "chat"), basis="e" * 64))


def test_domains_come_in_the_order_in_which_they_closed(store):
    for domain, position in [("math", 1), ("chat", 0)]:
        store.close_domain(domain_record(store, domain, position))
    assert [record.domain for record in store.domains()] == ["math", "chat"]


def test_bundles_are_numbered_and_ordered(store, tmp_path):
    commit_round(store, tmp_path / "rounds", "chat", 1)
    manifests = {number: bundle_manifest(store, number) for number in (10, 9)}
    for number, manifest in manifests.items():
        assert store.commit_bundle(manifest) == store.commit_bundle(manifest) == number
    assert store.bundles() == [(number, manifests[number].digest(), manifests[number]) for number in (9, 10)]
    with pytest.raises(RefExistsError, match="bundles/9"):
        store.commit_bundle(dataclasses.replace(manifests[9], code_version="other"))


def test_a_bundle_holds_only_what_is_committed(store, tmp_path):
    commit_round(store, tmp_path / "rounds", "chat", 1)
    manifest = bundle_manifest(store)
    missing = dataclasses.replace(manifest, files=(FileEntry("router.safetensors", "a" * 64, 3),))
    with pytest.raises(NotInStoreError, match=r"router\.safetensors"):
        store.commit_bundle(missing)
    with pytest.raises(StoreError, match="chat_r1"):
        store.commit_bundle(dataclasses.replace(manifest, stacks=(StackRef(StackId("chat", 1), "f" * 64),)))
    assert store.bundles() == []


def test_the_first_identity_claims_the_campaign(store):
    assert store.pin_identity({"config": "one"}) == {"config": "one"}
    assert store.pin_identity({"config": "two"}) == {"config": "one"}


def test_a_promotion_is_a_commit_of_its_own_and_the_last_one_counts(store, tmp_path):
    commit_round(store, tmp_path / "rounds", "chat", 1)
    for number in (1, 2):
        store.commit_bundle(bundle_manifest(store, number))
    assert store.standing().champion is None
    store.promote(1, "champion", "guarded", "the first bundle")
    store.promote(2, "challenger", "guarded", "worse")
    again = Store(store.uri, store.campaign)
    standing = again.standing()
    assert (standing.champion.bundle, standing.challenger.bundle) == (1, 2)
    assert [entry.ref for entry in again.history()][-2:] == ["refs/promotions/1.json", "refs/promotions/2.json"]


def test_only_a_committed_bundle_is_promoted_and_by_the_one_writer(store, tmp_path):
    commit_round(store, tmp_path / "rounds", "chat", 1)
    store.commit_bundle(bundle_manifest(store))
    with pytest.raises(NotInStoreError, match="bundle 2 is not committed"):
        store.promote(2, "champion", "hand", "by hand")
    store.take_epoch()
    Store(store.uri, store.campaign).take_epoch()
    with pytest.raises(FencedError):
        store.promote(1, "champion", "guarded", "the first bundle")
    assert store.promotions() == []
