"""One round of residual boosting: train a stack beside its frozen parents, keep it only if it beats them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch import nn

from bs_cluster import __version__
from bs_cluster.config.identity import domain_digest, effective_domain
from bs_cluster.config.schema import CampaignConfig, TrainingSection
from bs_cluster.data.batch import collate_packed, train_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.estimates import paired_difference
from bs_cluster.inference.scoring import mean_loss
from bs_cluster.inference.stacked import stack_config
from bs_cluster.records import (
    SCHEMA_VERSION,
    FileEntry,
    RoundOutcome,
    StackManifest,
    TrainRound,
    canonical_json,
    sha256_hex,
)
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.stacks.basis import Basis
from bs_cluster.store.hashing import stage_entries
from bs_cluster.training.callback import RoundCallback
from bs_cluster.training.guard import SpikeGuard, improves
from bs_cluster.training.memory import release_memory
from bs_cluster.training.packing import pack_rows
from bs_cluster.training.session import Session
from bs_cluster.training.trainer import StackTrainer, world_size


def train_round(session: Session, step: TrainRound, basis: Basis | None) -> tuple[RoundOutcome, StackManifest | None]:
    """Trains ``step.stack``; every rank calls it and gets the same answer.

    Returns the outcome and, where the stack is to be committed, its manifest; its files are in the store then and
    the stack is attached frozen. A stack that does not beat its parent by ``min_improvement`` is dropped.
    """
    started = time.monotonic()
    config, stacked = session.config, session.stacked
    training = _training_of(config, step.stack.domain)
    rows = session.rows(step.stack.domain)
    context = [stack.name for stack in step.context]

    stacked.fire(context)
    before_rows = session.score(rows.validation)
    before = mean_loss(before_rows)
    seed = round_seed(config.seed, step.stack.name)
    name = stacked.begin(stack_config(config.stack, step.stack, step.position), seed)
    stacked.tuner.confine(basis)
    stacked.fire(context, train=name)

    callback = _optimise(session, training, rows, name, seed, before)
    tensors = stacked.tuner.freeze(name)
    stacked.fire([*context, name])
    after_rows = session.score(rows.validation)
    after, gain = mean_loss(after_rows), paired_difference(before_rows, after_rows)

    committed = improves(before, after, training.min_improvement)
    outcome = RoundOutcome(
        stack=step.stack,
        val_before=before,
        val_after=after,
        gain=gain.mean,
        gain_error=gain.error,
        rows=gain.rows,
        committed=committed,
        manifest=None,
        steps=callback.steps_done,
        restores=callback.guard.restores,
        seconds=time.monotonic() - started,
        reason=_reason(before, after, committed, training.min_improvement),
    )
    if not committed:
        stacked.drop(name)
        return outcome, None
    metrics = {
        "val_before": before,
        "val_after": after,
        "gain": gain.mean,
        "gain_error": gain.error,
        "rows": float(gain.rows),
        "steps": float(outcome.steps),
        "restores": float(outcome.restores),
        **callback.summary(),
    }
    manifest = StackManifest(
        schema_version=SCHEMA_VERSION,
        campaign=config.campaign,
        stack=step.stack,
        position=step.position,
        parents=step.parents,
        context=step.context,
        base=stacked.base.ref,
        config_digest=domain_digest(config, step.stack.domain),
        data_fingerprint=rows.fingerprint,
        basis=basis.digest if basis else None,
        files=_upload(session, step, tensors, callback.history),
        metrics=metrics,
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


def _optimise(
    session: Session, training: TrainingSection, rows: DomainRows, name: str, seed: int, before: float
) -> RoundCallback:
    """Runs the trainer and leaves the best snapshot in the learning stack."""
    units = pack_rows(rows.train, session.config.data.max_length) if training.packing else [[r] for r in rows.train]
    micro = training.per_device_batch * training.grad_accum
    order = train_batches(len(units), steps=training.steps, global_batch=micro * world_size(), seed=seed)
    dataset = Dataset.from_dict({"unit": [index for batch in order for index in batch]})
    callback = RoundCallback(
        session=session,
        training=training,
        validation=rows.validation,
        name=name,
        guard=SpikeGuard(training.spike_factor, training.max_spikes),
        best_loss=before,
    )

    def collate(samples: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        return collate_units([row for sample in samples for row in units[sample["unit"]]])

    # Accelerate keeps its state in a process-wide singleton; each round configures DeepSpeed anew.
    AcceleratorState._reset_state(reset_partial_state=True)
    peft = session.stacked.peft
    assert peft is not None
    with tempfile.TemporaryDirectory(prefix="bs-trainer-") as scratch, _own_hooks_only(peft):
        trainer = StackTrainer(
            peft,
            session.stacked.base.tokenizer,
            dataset,
            collate,
            training,
            seed=seed,
            output_dir=scratch,
            callbacks=[callback],
        )
        callback.trainer = trainer
        trainer.train()
        callback.finish()
        trainer.accelerator.free_memory()
    callback.trainer = None
    del trainer
    release_memory()
    peft.eval()
    return callback


@contextmanager
def _own_hooks_only(module: nn.Module) -> Iterator[None]:
    """Takes away the forward hooks that were added meanwhile: a DeepSpeed engine leaves its own on the model, which
    would keep every round's engine, with its copies of the weights, alive and busy."""
    held = [module._forward_pre_hooks, module._forward_hooks]
    before = [set(hooks) for hooks in held]
    try:
        yield
    finally:
        for hooks, known in zip(held, before, strict=True):
            for key in set(hooks) - known:
                del hooks[key]


def collate_units(rows: list[EncodedRow]) -> dict[str, torch.Tensor]:
    """One micro-batch: rows end to end, attention within rows. ``token_mask`` marks real tokens (here all)."""
    batch = collate_packed(rows)
    del batch["row_index_T"]
    return batch | {"token_mask": torch.ones_like(batch["input_ids"], dtype=torch.float32)}


def _upload(
    session: Session, step: TrainRound, tensors: Mapping[str, torch.Tensor], history: list[dict[str, float]]
) -> tuple[FileEntry, ...]:
    """Writes and verifies the stack's files. Every rank hashes its own copy; only rank 0 uploads."""
    with tempfile.TemporaryDirectory(prefix="bs-stack-") as folder:
        directory = Path(folder)
        write_adapter(directory, stack_config(session.config.stack, step.stack, step.position), tensors)
        lines = [json.dumps(line, sort_keys=True) for line in history]
        (directory / "history.jsonl").write_text("\n".join(lines) + "\n")
        if session.rank == 0:
            return session.store.upload_stack(directory)
        return stage_entries(directory)


def _reason(before: float, after: float, committed: bool, wanted: float) -> str:
    gain = before - after
    if committed:
        return f"validation loss fell by {gain:.4f}"
    return f"validation loss moved from {before:.4f} to {after:.4f}, a gain of at least {wanted} was wanted"
