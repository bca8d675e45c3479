"""One round of residual boosting: train a stack beside its frozen parents, keep it only if it surely beats them."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from bs_cluster import __version__
from bs_cluster.basis import Basis
from bs_cluster.config.identity import domain_digest, settings_of
from bs_cluster.config.schema import TrainingSection
from bs_cluster.failpoints import failpoint
from bs_cluster.inference.stacked import stack_config
from bs_cluster.records import (
    EXAMPLES,
    SCHEMA_VERSION,
    BeforeAfter,
    FileEntry,
    RoundOutcome,
    StackManifest,
    TrainRound,
    canonical_json,
    sha256_hex,
)
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.store.hashing import stage_entries
from bs_cluster.training.checkpoint import Checkpoints
from bs_cluster.training.exam import ALIGNED, Exam, Judged, Supervised
from bs_cluster.training.loop import learn
from bs_cluster.training.ranks import check_agreement
from bs_cluster.training.rollouts import answering
from bs_cluster.training.session import Session
from bs_cluster.training.state import RoundState


def train_round(session: Session, step: TrainRound, basis: Basis | None) -> tuple[RoundOutcome, StackManifest | None]:
    """Trains ``step.stack``; every rank calls it and gets the same answer.

    Returns the outcome and, where the stack is to be committed, its manifest; its files are in the store then and
    the stack is attached frozen. A stack that does not surely beat its parent is dropped (``commit_rule``).
    """
    started = time.monotonic()
    config, stacked = session.config, session.stacked
    entry = config.domain(step.stack.domain).rounds[step.entry]
    training = settings_of(config, step.stack.domain, entry)
    rows = session.rows(step.stack.domain)
    digest, basis_digest = domain_digest(config, step.stack.domain), basis.digest if basis else None
    identity = {
        "place in the curriculum": sha256_hex(canonical_json(step.to_dict())),
        "config": digest,
        "set of rows": sha256_hex(canonical_json([rows.fingerprint, sorted(rows.ids)])),
        "base": stacked.base.ref.digest,
        "set of confining directions": basis_digest or "",
        "version of the code": __version__,
    }
    check_agreement(f"what {step.stack.name} learns from", sha256_hex(canonical_json(identity)))

    with ExitStack() as round_long:
        if entry.aligned:
            rollouts = round_long.enter_context(answering(session, entry))
            exam: Exam = ALIGNED[entry.objective](session, step, entry, training, rollouts)
        else:
            exam = Supervised(session, step, training)
            stacked.keep([parent.name for parent in step.context])
        learned, tensors, judged = _examined(session, step, basis, exam, training, identity)
    verdict = judged.verdict
    outcome = RoundOutcome(
        stack=step.stack,
        val_before=judged.before,
        val_after=judged.after,
        gain=judged.gain.mean,
        gain_error=judged.gain.error,
        rows=judged.gain.rows,
        committed=verdict.commit,
        manifest=None,
        steps=learned.step,
        restores=learned.guard.restores,
        seconds=time.monotonic() - started,
        reason=verdict.reason,
        objective=entry.objective,
        entry=step.entry,
    )
    if not verdict.commit:
        stacked.drop(step.stack.name)
        return outcome, None
    manifest = StackManifest(
        schema_version=SCHEMA_VERSION,
        campaign=config.campaign,
        stack=step.stack,
        position=step.position,
        parents=step.parents,
        context=step.context,
        base=stacked.base.ref,
        config_digest=digest,
        data_fingerprint=rows.fingerprint,
        basis=basis_digest,
        files=_upload(session, step, tensors, learned.history, judged.examples),
        metrics={
            **_metrics(outcome, learned),
            **judged.metrics,
            **_room(stacked.tuner.site_names(), basis),
        },
        code_version=__version__,
        objective=entry.objective,
        entry=step.entry,
    )
    return outcome, manifest


def _examined(
    session: Session,
    step: TrainRound,
    basis: Basis | None,
    exam: Exam,
    training: TrainingSection,
    identity: Mapping[str, str],
) -> tuple[RoundState, dict[str, torch.Tensor], Judged]:
    """Trains the stack between the two halves of its exam, and freezes it: how it learned, its tensors as they are
    stored, and what is made of it."""
    stacked, stack = session.stacked, step.stack
    exam.prepare()
    seed = round_seed(session.config.seed, stack.name)
    name = stacked.begin(stack_config(session.config.stack, stack, step.position), seed)
    stacked.tuner.confine(basis)
    every_s = training.checkpoint_every_s
    area = session.store.round_area(name)
    checkpoints = Checkpoints(area, stack, identity, every_s, session.report, session.leaving)
    with exam.learning(name, seed) as (objective, parent_loss):
        learned = learn(session, stack, training, objective, parent_loss, checkpoints)
    failpoint("training.fold")
    tensors = stacked.tuner.freeze(name)
    stacked.fire([*(parent.name for parent in step.context), name])
    return learned, tensors, exam.judge()


def round_seed(seed: int, name: str) -> int:
    """A seed of 31 bits for a stack's start, its rows' order and its noise."""
    return int(sha256_hex(canonical_json([seed, name]))[:8], 16) >> 1


def _room(sites: Sequence[str], basis: Basis | None) -> dict[str, float]:
    """What the stack had to learn in: share of a site's directions that earlier domains left free."""
    free = (basis or Basis()).free_shares(sites)
    return {"free_share_min": min(free), "free_share_median": statistics.median(free)}


def _metrics(outcome: RoundOutcome, learned: RoundState) -> dict[str, float]:
    """Numbers for the manifest: those of the rows that decide, the best snapshot's step and its loss on the rows that
    select, the last step's training figures."""
    last = {key: value for key, value in learned.history[-1].items() if key in ("loss", "load_balance", "imbalance")}
    decided = ("val_before", "val_after", "gain", "gain_error", "rows", "steps", "restores")
    return (
        {name: float(getattr(outcome, name)) for name in decided}
        | {f"train_{key}": value for key, value in last.items()}
        | {"best_step": float(learned.best.step), "best_selection_loss": learned.best.loss}
    )


def _upload(
    session: Session,
    step: TrainRound,
    tensors: Mapping[str, torch.Tensor],
    history: list[dict[str, float]],
    examples: Sequence[BeforeAfter],
) -> tuple[FileEntry, ...]:
    """Writes and verifies the stack's files. Every rank hashes its own copy; only rank 0 uploads."""
    with staging_folder(staged_for(session)) as folder:
        failpoint("training.stage")
        write_adapter(folder, stack_config(session.config.stack, step.stack, step.position), tensors)
        lines = [json.dumps(line, sort_keys=True) for line in history]
        (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
        if examples:
            told = [json.dumps(example.to_dict(), sort_keys=True, ensure_ascii=False) for example in examples]
            (folder / EXAMPLES).write_text("\n".join(told) + "\n", encoding="utf-8")
        if session.rank == 0:
            return session.store.upload_stack(folder)
        return stage_entries(folder)


def staged_for(session: Session) -> str:
    """Whom a staged stack belongs to: a rank of a campaign, which stages one at a time."""
    return f"{session.store.uri} {session.config.campaign} {session.rank}"


def clear_staged(whose: str) -> str:
    """Removes what a process that was killed had staged, a gigabyte of a large base's stack: nothing else would collect
    it. Returns the prefix of such folders' names."""
    prefix = f"bs-stack-{sha256_hex(whose.encode())[:16]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    return prefix


@contextmanager
def staging_folder(whose: str) -> Iterator[Path]:
    """A temporary folder on this machine; what was left of an earlier one goes first."""
    with tempfile.TemporaryDirectory(prefix=clear_staged(whose)) as folder:
        yield Path(folder)
