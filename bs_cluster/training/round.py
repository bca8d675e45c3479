"""One round of residual boosting: train a stack beside its frozen parents, keep it only if it surely beats them."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bs_cluster import __version__
from bs_cluster.config.identity import domain_digest, effective_domain
from bs_cluster.config.schema import CampaignConfig, TrainingSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.estimates import paired_difference, token_mean
from bs_cluster.failpoints import failpoint
from bs_cluster.inference.stacked import stack_config
from bs_cluster.records import (
    SCHEMA_VERSION,
    FileEntry,
    RoundOutcome,
    RowLoss,
    StackManifest,
    TrainRound,
    canonical_json,
    sha256_hex,
)
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.stacks.basis import Basis
from bs_cluster.store.hashing import stage_entries
from bs_cluster.training.checkpoint import Checkpoints
from bs_cluster.training.commit_rule import decide, split_validation
from bs_cluster.training.loop import learn
from bs_cluster.training.ranks import check_agreement
from bs_cluster.training.session import Session
from bs_cluster.training.state import RoundState


def train_round(session: Session, step: TrainRound, basis: Basis | None) -> tuple[RoundOutcome, StackManifest | None]:
    """Trains ``step.stack``; every rank calls it and gets the same answer.

    Returns the outcome and, where the stack is to be committed, its manifest; its files are in the store then and
    the stack is attached frozen. A stack that does not surely beat its parent is dropped (``commit_rule.decide``).
    """
    started = time.monotonic()
    config, stacked = session.config, session.stacked
    training = _training_of(config, step.stack.domain)
    rows = session.rows(step.stack.domain)
    selection, decision = split_validation(rows.validation, training.selection_share)
    context = [stack.name for stack in step.context]
    seed = round_seed(config.seed, step.stack.name)
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

    stacked.fire(context)
    before, parent_loss = session.score(decision), token_mean(session.score(selection))
    base = _base_losses(session, decision) if _others_fire(step) else None

    name = stacked.begin(stack_config(config.stack, step.stack, step.position), seed)
    stacked.tuner.confine(basis)
    stacked.fire(context, train=name)
    area = session.store.round_area(name)
    every_s = training.checkpoint_every_s
    checkpoints = Checkpoints(area, step.stack, identity, every_s, session.report, session.leaving)
    learned = learn(session, step.stack, training, rows.train, selection, parent_loss, seed, checkpoints)
    failpoint("training.fold")
    tensors = stacked.tuner.freeze(name)

    stacked.fire([*context, name])
    after = session.score(decision)
    gain = paired_difference(before, after)
    verdict = decide(
        gain,
        training.min_improvement,
        training.min_improvement_errors,
        over_base=paired_difference(base, after) if base else None,
    )
    outcome = RoundOutcome(
        stack=step.stack,
        val_before=token_mean(before),
        val_after=token_mean(after),
        gain=gain.mean,
        gain_error=gain.error,
        rows=gain.rows,
        committed=verdict.commit,
        manifest=None,
        steps=learned.step,
        restores=learned.guard.restores,
        seconds=time.monotonic() - started,
        reason=verdict.reason,
    )
    if not verdict.commit:
        stacked.drop(name)
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
        files=_upload(session, step, tensors, learned.history),
        metrics=_metrics(outcome, learned) | _room(stacked.tuner.site_names(), basis),
        code_version=__version__,
    )
    return outcome, manifest


def round_seed(seed: int, name: str) -> int:
    """A seed of 31 bits for a stack's start, its rows' order and its noise."""
    return int(sha256_hex(canonical_json([seed, name]))[:8], 16) >> 1


def _training_of(config: CampaignConfig, domain: str) -> TrainingSection:
    own = effective_domain(config, domain)
    settings: dict[str, Any] = {"steps": own.steps, "learning_rate": own.learning_rate, "max_rounds": own.max_rounds}
    return config.training.model_copy(update=settings)


def _others_fire(step: TrainRound) -> bool:
    """Whether this first round starts beside other domains' stacks, which may have made its domain worse than the base:
    then it must beat the base too."""
    return bool(step.context) and all(stack.domain != step.stack.domain for stack in step.context)


def _base_losses(session: Session, rows: Sequence[EncodedRow]) -> list[RowLoss]:
    """Losses of the bare base; what fired fires again afterwards."""
    firing = session.stacked.tuner.composition.firing
    session.stacked.fire([])
    try:
        return session.score(rows)
    finally:
        session.stacked.fire(firing)


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
    session: Session, step: TrainRound, tensors: Mapping[str, torch.Tensor], history: list[dict[str, float]]
) -> tuple[FileEntry, ...]:
    """Writes and verifies the stack's files. Every rank hashes its own copy; only rank 0 uploads."""
    with staging_folder(f"{session.store.uri} {session.config.campaign} {step.stack.name} {session.rank}") as folder:
        failpoint("training.stage")
        write_adapter(folder, stack_config(session.config.stack, step.stack, step.position), tensors)
        lines = [json.dumps(line, sort_keys=True) for line in history]
        (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
        if session.rank == 0:
            return session.store.upload_stack(folder)
        return stage_entries(folder)


@contextmanager
def staging_folder(whose: str) -> Iterator[Path]:
    """A temporary folder on this machine. What a process that was killed had staged for the same purpose, a gigabyte of
    a large base's stack, goes first: nothing else would collect it."""
    prefix = f"bs-stack-{sha256_hex(whose.encode())[:16]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        yield Path(folder)
