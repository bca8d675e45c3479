"""Whatever happens to one file of a finished store, what is loaded is what was committed, or nothing is."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from damages import DAMAGES, files
from tiny_history import bundle_manifest, commit_round, domain_record

from bs_cluster.errors import BrainstacksError
from bs_cluster.records import canonical_json
from bs_cluster.store import Store

LIMIT_S = 20


@pytest.fixture(scope="module")
def histories(tmp_path_factory) -> tuple[Path, Path]:
    """A finished campaign's folder, and a twin of another content."""
    folder = tmp_path_factory.mktemp("damage")
    return finished(folder / "ours", 3), finished(folder / "twin", 4)


def finished(folder: Path, steps: int) -> Path:
    store = Store(str(folder), "demo")
    store.pin_identity({"config": f"of {steps} steps"})
    store.take_epoch()
    for position, (domain, rounds) in enumerate({"chat": 2, "math": 1}.items()):
        for number in range(1, rounds + 1):
            commit_round(store, folder / "staged", domain, number, position, steps)
        store.close_domain(domain_record(store, domain, position, rejected=steps - 3))
    store.commit_bundle(bundle_manifest(store))
    store.promote(1, "champion", "guarded", f"the first bundle of {steps}")
    store.commit_bundle(bundle_manifest(store, 2))
    store.promote(2, "challenger", "guarded", f"worse by {steps}")
    return folder / "demo"


def loaded(store: Store) -> list[bytes]:
    """All that a campaign, an evaluator or a server takes from a store."""
    identity = store.pin_identity({"config": "asked"})
    stacks, domains, bundles = store.stacks(), store.domains(), store.bundles()
    found = [canonical_json(identity)]
    for ref, manifest in stacks:
        stored = store.load_stack(manifest)
        found += [canonical_json(ref.to_dict()), canonical_json(manifest.to_dict()), canonical_json(stored.config)]
        found += [key.encode() + tensor.numpy().tobytes() for key, tensor in sorted(stored.tensors.items())]
    for record in domains:
        found += [canonical_json(record.to_dict()), store.get_bytes(record.rows)]
    for _, _, bundle in bundles:
        found.append(canonical_json(bundle.to_dict()))
        found += [store.get_bytes(entry.sha256) for entry in bundle.files]
    found += [canonical_json(promotion.to_dict()) for promotion in store.promotions()]
    return found


@contextmanager
def time_limit():
    def ring(*_):
        raise TimeoutError(f"more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(store: Store, whole: list[bytes]) -> str:
    """``refused`` on loading, ``found`` by an audit though all loads are right, ``harmless``, or ``SILENT``."""
    try:
        found = loaded(store)
    except BrainstacksError:
        assert not store.verify().sound, "what loading refuses, an audit must find"
        return "refused"
    if found != whole:
        return "SILENT"
    return "harmless" if Store(store.uri, "demo").verify().sound else "found"


def trials(
    count: int, seed: int, histories: tuple[Path, Path], folder: Path, mend_every: int = 1
) -> Counter[tuple[str, str]]:
    """How often each damage ended how. Every ``mend_every``-th one is repaired as well."""
    ours, twin = histories
    whole = loaded(Store(str(ours.parent), "demo"))
    copy = Store(str(ours.parent), "demo")
    table: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        draw = random.Random(f"{seed} {number}")
        root = folder / str(number) / "demo"
        shutil.copytree(ours, root)
        damage = DAMAGES[number % len(DAMAGES)]
        path = draw.choice(files(root))
        did = f"trial {number}: {damage.__name__} {path.relative_to(root)}, {damage(root, path, draw, twin)}"
        try:
            with time_limit():
                store = Store(str(root.parent), "demo")
                how = outcome(store, whole)
                assert how != "SILENT", did
                if number % mend_every == 0:
                    mend(root, copy, whole, did)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{did}: a raw {type(error).__name__}: {error}") from error
        table[damage.__name__, how] += 1
        shutil.rmtree(root.parent)
    return table


def mend(root: Path, copy: Store, whole: list[bytes], did: str) -> None:
    """A repair alone mends into the same history or not at all; with a copy it mends everything."""
    if Store(str(root.parent), "demo").repair().left.sound:
        assert loaded(Store(str(root.parent), "demo")) == whole, f"{did}: repaired into another history"
    repaired = Store(str(root.parent), "demo").repair(copy)
    assert repaired.left.sound, (did, repaired)
    assert loaded(Store(str(root.parent), "demo")) == whole, did


def told(table: Counter[tuple[str, str]]) -> str:
    hows = ("refused", "found", "harmless")
    lines = [f"{'damage':<10}" + "".join(f"{how:>10}" for how in hows)]
    for damage in DAMAGES:
        lines.append(f"{damage.__name__:<10}" + "".join(f"{table[damage.__name__, how]:>10}" for how in hows))
    return "\n".join(lines)


def test_two_hundred_damages_are_found_or_harmless(histories, tmp_path):
    table = trials(200, 0, histories, tmp_path, mend_every=5)
    print(told(table))
    assert table.total() == 200
    assert table["flip", "refused"] > 10  # damages do damage


@pytest.mark.long
def test_two_thousand_more(histories, tmp_path):
    table = trials(2000, 1, histories, tmp_path)
    print(told(table))
    assert table.total() == 2000
