"""Random damages to a finished store, tried one by one: each is refused on loading, found by an audit, or harmless.

    make damages    which is, from the root, with PYTHONPATH=.:tests
    .venv/bin/python tests/unit/store/damage_trials.py --log .runs/damages.jsonl --page docs/DAMAGES.md

A trial depends on its number and the seed alone. What the log has is not tried again, so a run may be stopped and begun
anew; ``--seconds`` stops it by itself. Exit code 1 where one was loaded in silence, raised something raw, or hung.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from damages import DAMAGES, files
from tiny_history import bundle_manifest, commit_round, domain_record

from bs_cluster.errors import BrainstacksError
from bs_cluster.records import REMOVED, canonical_json
from bs_cluster.retirement import Request, plan
from bs_cluster.store import Store

PAGE = """# What was damaged, and who noticed

Written by `make damages`: {trials:,} damages to the store of a finished campaign of three domains, one of which was
removed and erased, each to a fresh copy, drawn from seed {seed} over every kind of file that a store has. *Flip* a bit,
*cut* a file, *zero* a part of it, *swap* it with another, *delete* it or its folder, *plant* a file, a folder or a pipe
beside it, put a *link*, a pipe or a folder in its place, *rollback*: put what was valid at another time of another
history under the same name, *forged*: a ref, its manifest and all digests at one with each other, none of it committed.
Half of the readers had loaded everything before the damage, which no memory of theirs may hide.

*refused*: what a campaign, an evaluator or a server loads raises an error in words, and an audit finds it too;
*found*: all that is loaded is right, and `bs_cluster store verify` names what is wrong; *harmless*: all is right, and
nothing that a store needs is amiss.
**None was loaded in silence, none raised anything raw, none took a minute.** {mended:,} of them were repaired as well:
alone, into the same history or not at all; with a sound copy, into the same history always.

{table}
"""
LIMIT_S = 60  # of one trial with its repairs: some tenths of a second on a machine with nothing else to do
HOWS = ("refused", "found", "harmless")


@dataclass(frozen=True)
class Ended:
    """A trial: the damage, the kind of the file it was aimed at, whether the reader had loaded everything before, and
    how it ended."""

    number: int
    damage: str
    kind: str
    view: bool
    how: str


def finished(folder: Path, steps: int) -> Path:
    """A campaign of three domains of which one was removed and erased: every kind of file that a store has."""
    store = Store(str(folder), "demo")
    store.pin_identity({"config": f"of {steps} steps"})
    store.take_epoch()
    for position, (domain, rounds) in enumerate({"chat": 2, "math": 1, "code": 1}.items()):
        for number in range(1, rounds + 1):
            commit_round(store, folder / "staged", domain, number, position, steps)
        store.close_domain(domain_record(store, domain, position, rejected=steps - 3))
    store.commit_bundle(bundle_manifest(store))
    store.promote(1, "champion", "guarded", f"the first bundle of {steps}")
    request = Request("code", REMOVED, reason=f"licence of {steps}", when=f"at {steps}")
    retirement = plan(request, 1, store.live(), store.stacks())
    assert retirement is not None
    store.retire(retirement)
    store.erase("code", f"licence of {steps}", f"at {steps}")
    store.commit_bundle(bundle_manifest(store, 2))
    store.promote(2, "champion", "guarded", f"without what was retired of {steps}")
    store.commit_bundle(bundle_manifest(store, 3))
    store.promote(3, "challenger", "guarded", f"worse by {steps}")
    return folder / "demo"


def loaded(store: Store) -> list[bytes]:
    """All that a campaign, an evaluator or a server takes from a store."""
    identity = store.pin_identity({"config": "asked"})
    stacks, domains, bundles = store.stacks(), store.domains(), store.bundles()
    outdated, _ = store.out_of_date()
    found = [canonical_json(identity)]
    for ref, manifest in stacks:
        stored = store.load_stack(manifest)
        found += [canonical_json(ref.to_dict()), canonical_json(manifest.to_dict()), canonical_json(stored.config)]
        found += [key.encode() + tensor.numpy().tobytes() for key, tensor in sorted(stored.tensors.items())]
    for record in domains:
        found += [canonical_json(record.to_dict()), store.get_bytes(record.rows)]
    for number, _, bundle in bundles:
        found.append(canonical_json(bundle.to_dict()))
        if number not in outdated:
            found += [store.get_bytes(entry.sha256) for entry in bundle.files]
    facts = [*store.promotions(), *store.retirements(), *store.erasures(), store.standing()]
    return found + [canonical_json(fact.to_dict()) for fact in facts]


@contextmanager
def time_limit() -> Iterator[None]:
    def ring(*_: object) -> None:
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
    numbers: Iterable[int], seed: int, histories: tuple[Path, Path], folder: Path, mend_every: int = 1
) -> Iterator[Ended]:
    """Raises AssertionError, which tells the trial, for one that ended in no way that is allowed. Every
    ``mend_every``-th is repaired as well; half of the readers have loaded all of it before the damage."""
    ours, twin = histories
    whole = loaded(Store(str(ours.parent), "demo"))
    copy = Store(str(ours.parent), "demo")
    for number in numbers:
        draw = random.Random(f"{seed} {number}")
        root = folder / str(number) / "demo"
        shutil.copytree(ours, root)
        damage, view = DAMAGES[number % len(DAMAGES)], number // len(DAMAGES) % 2 == 1
        path = draw.choice(files(root))
        kind = "/".join(path.relative_to(root).parts[: 2 if path.is_relative_to(root / "refs") else 1])
        store = Store(str(root.parent), "demo")
        if view:
            loaded(store)
        did = f"trial {number}: {damage.__name__} {path.relative_to(root)}, {damage(root, path, draw, twin)}"
        try:
            with time_limit():
                how = outcome(store, whole)
                assert how in HOWS, f"{did}: {how}"
                if number % mend_every == 0:
                    mend(root, copy, whole, did)
        except AssertionError:
            raise
        except Exception as error:
            raise AssertionError(f"{did}: a raw {type(error).__name__}: {error}") from error
        shutil.rmtree(root.parent)
        yield Ended(number, damage.__name__, kind, view, how)


def mend(root: Path, copy: Store, whole: list[bytes], did: str) -> None:
    """A repair alone mends into the same history or not at all; with a copy it mends everything."""
    if Store(str(root.parent), "demo").repair().left.sound:
        assert loaded(Store(str(root.parent), "demo")) == whole, f"{did}: repaired into another history"
    repaired = Store(str(root.parent), "demo").repair(copy)
    assert repaired.left.sound, (did, repaired)
    assert loaded(Store(str(root.parent), "demo")) == whole, did


class Figure:
    """How many of which damage ended how."""

    def __init__(self, ended: Iterable[Ended]):
        self.ended = list(ended)

    def count(self, **wanted: str | bool) -> int:
        return sum(all(getattr(one, key) == value for key, value in wanted.items()) for one in self.ended)

    def __str__(self) -> str:
        """Markdown."""
        head = f"| | {' | '.join(HOWS)} |\n|---|{'---|' * len(HOWS)}"
        rows: list[tuple[str, dict[str, str | bool]]] = [(d.__name__, {"damage": d.__name__}) for d in DAMAGES]
        rows += [(f"in `{kind}`", {"kind": kind}) for kind in sorted({one.kind for one in self.ended})]
        rows += [("read for the first time", {"view": False}), ("read before", {"view": True}), ("all", {})]
        lines = [
            f"| {name} | {' | '.join(f'{self.count(how=how, **wanted):,}' for how in HOWS)} |" for name, wanted in rows
        ]
        return "\n".join([head, *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--log", type=Path, required=True, help="a line of JSON a trial")
    parser.add_argument("--page", type=Path, help="the table, with words, when all are through")
    parser.add_argument("--mend-every", type=int, default=10, help="repair every so many-th, alone and from a copy")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no trial after so many")
    arguments = parser.parse_args()
    started = time.monotonic()
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.log.read_text().splitlines() if arguments.log.exists() else []
    ended = [Ended(**json.loads(line)) for line in lines]
    left = sorted(set(range(arguments.trials)) - {one.number for one in ended})
    with tempfile.TemporaryDirectory() as scratch, arguments.log.open("a") as log:
        folder = Path(scratch)
        histories = finished(folder / "ours", 3), finished(folder / "twin", 4)
        numbers = (number for number in left if time.monotonic() - started < arguments.seconds)
        failed = 0
        for number in numbers:
            try:
                (one,) = trials([number], arguments.seed, histories, folder, arguments.mend_every)
            except AssertionError as error:
                print(error, flush=True)
                failed += 1
                continue
            ended.append(one)
            log.write(json.dumps(asdict(one)) + "\n")
    print(Figure(ended))
    print(f"{len(ended):,} of {arguments.trials:,} trials, seed {arguments.seed}")
    if arguments.page and len(ended) == arguments.trials:
        mended = len(range(0, arguments.trials, arguments.mend_every))
        page = PAGE.format(trials=arguments.trials, seed=arguments.seed, mended=mended, table=Figure(ended))
        arguments.page.write_text(page)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
