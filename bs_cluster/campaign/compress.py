"""A domain's rounds as one stack of the same shape: what they would lose and save, and that stack in their place.

The merged stack is fitted on the domain's own training rows as the store holds them, and judged on its validation and
sweep rows, of which neither the fit nor a choice in it has seen one.

Shapes: P sites.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from peft import set_peft_model_state_dict

from bs_cluster import __version__
from bs_cluster.adapter_format import CONFIG_NAME, WEIGHTS_NAME, tensor_key
from bs_cluster.config.rounds import SFT
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import last_rounds
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.decoder import decoder_and_head
from bs_cluster.errors import UsageError
from bs_cluster.estimates import Estimate, paired_difference, token_mean
from bs_cluster.inference.scoring import score_batch
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import MERGED, Record, Retirement, RowLoss, StackId, StackManifest
from bs_cluster.retirement import Request, plan
from bs_cluster.stacks import StackConfig
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.stacks.compression import merge
from bs_cluster.store import Store

PASSES = 5  # over the judging rows, of each side in turns, to time a forward


@dataclasses.dataclass(frozen=True)
class Compression(Record):
    """``change`` is the merged stack's loss less the rounds', paired by row, and ``first_round`` that of the first
    round alone: what merging has to beat. ``parent`` is the loss without any of them, ``gain`` what the merged stack
    takes off it. All beside those stacks of other domains that fired while the first round trained. ``missed`` is the
    mean share of the rounds' written energy that the merged stack misses at a site. Seconds are of a forward over all
    rows, the median of ``PASSES``."""

    domain: str
    rounds: tuple[str, ...]
    merged: str
    loss: float
    merged_loss: float
    parent: float
    change: Estimate
    first_round: Estimate
    gain: Estimate
    missed: float
    bytes: int
    merged_bytes: int
    seconds: float
    merged_seconds: float
    tolerance: float
    within: bool


def rounds_of(store: Store, domain: str) -> list[StackManifest]:
    """The rounds of a closed domain. Raises UsageError for a domain that is not closed or has fewer than two, and where
    one of them is of alignment: losses do not say what merging takes from that."""
    now = store.live()
    if domain in now.reopened:
        raise UsageError(f"{domain} was changed and has not closed again; bs_cluster run closes it")
    if domain not in now.closings:
        raise UsageError(f"the campaign has no closed domain {domain!r}")
    manifests = [manifest for _, manifest in store.stacks() if manifest.stack.domain == domain]
    if len(manifests) < 2:
        raise UsageError(f"{domain} has {len(manifests)} committed round; there is nothing to merge")
    for manifest in manifests:
        if manifest.objective != SFT:
            raise UsageError(
                f"{manifest.stack.name} is a round of {manifest.objective}, and losses do not say what merging takes "
                f"from that; only rounds of {SFT} can be merged"
            )
    return manifests


def compress(
    store: Store, config: CampaignConfig, domain: str, tolerance: float, folder: Path, say: Callable[[str], None]
) -> Compression:
    """Merges the rounds of a closed domain, writes the stack into ``folder`` and measures it. Raises UsageError as
    ``rounds_of``."""
    manifests = rounds_of(store, domain)
    rows = DomainRows.of(store.live().closings[domain], store.get_bytes)
    say(f"{config.base.model} is loaded")
    stacked = StackedBase.load(config.base, "cpu")
    beside = [other for _, other in store.stacks() if other.stack in manifests[0].context]
    for manifest in (*beside, *manifests):
        stacked.attach(manifest, store)
    names, context = [manifest.stack.name for manifest in manifests], [other.stack.name for other in beside]
    say(f"{', '.join(names)} are merged on {len(rows.train)} training rows")
    stack = StackId(domain, last_rounds(store)[domain] + 1)
    missed = add_merged(stacked, context, names, stack, rows.train, folder)
    say("both are scored and timed")
    judging = [*rows.sweep, *rows.validation]
    sides = {"rounds": names, "merged": [stack.name], "first": names[:1], "parent": []}
    sides = {side: [*context, *fires] for side, fires in sides.items()}
    losses, seconds = _judged(stacked, sides, judging, config.training.eval_batch_tokens)
    change = paired_difference(losses["merged"], losses["rounds"])
    return Compression(
        domain=domain,
        rounds=tuple(names),
        merged=stack.name,
        loss=token_mean(losses["rounds"]),
        merged_loss=token_mean(losses["merged"]),
        parent=token_mean(losses["parent"]),
        change=change,
        first_round=paired_difference(losses["first"], losses["rounds"]),
        gain=paired_difference(losses["parent"], losses["merged"]),
        missed=missed,
        bytes=sum(m.file(name).size for m in manifests for name in (CONFIG_NAME, WEIGHTS_NAME)),
        merged_bytes=sum((folder / name).stat().st_size for name in (CONFIG_NAME, WEIGHTS_NAME)),
        seconds=seconds["rounds"],
        merged_seconds=seconds["merged"],
        tolerance=tolerance,
        within=change.high <= tolerance,
    )


def publish_merged(store: Store, found: Compression, folder: Path) -> tuple[Request, Retirement]:
    """Publishes the merged stack in ``folder``, to wait. Returns what is asked for, and the retirement of the rounds
    that brings it in: until that is committed too, nothing that is live has changed."""
    manifests = rounds_of(store, found.domain)
    first, last, live = manifests[0], manifests[-1], store.live()
    told = {"step": 0, "merged_loss": found.merged_loss, "missed": found.missed}
    (folder / "history.jsonl").write_text(json.dumps(told, sort_keys=True) + "\n")
    manifest = dataclasses.replace(
        last,
        stack=StackId.parse(found.merged),
        parents=tuple(parent for parent in first.parents if parent in live.stacks),
        context=first.context,
        basis=first.basis,
        files=store.upload_stack(folder),
        metrics=_metrics(found),
        code_version=__version__,
    )
    store.take_epoch()  # a run that is under way commits nothing any more
    request = Request(
        domain=found.domain,
        fate=MERGED,
        into=store.publish_stack(manifest, waits=True),
        reason=f"{found.merged} holds them: {found.change}, nats per token",
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    retirement = plan(request, len(store.retirements()) + 1, store.live(), store.stacks())
    assert retirement is not None, "a domain with rounds has something to retire"
    return request, retirement


def _metrics(found: Compression) -> dict[str, float]:
    """Numbers for the manifest: those that every stack has, over what it starts beside, and those of the merging."""
    return {
        "val_before": found.parent,
        "val_after": found.merged_loss,
        "gain": found.gain.mean,
        "gain_error": found.gain.error,
        "rows": float(found.gain.rows),
        "steps": 0.0,
        "restores": 0.0,
        "merged_rounds": float(len(found.rounds)),
        "merged_change": found.change.mean,
        "merged_change_error": found.change.error,
        "merged_missed": found.missed,
    }


@torch.no_grad()
def add_merged(
    stacked: StackedBase,
    context: Sequence[str],
    names: Sequence[str],
    stack: StackId,
    rows: Sequence[EncodedRow],
    folder: Path,
) -> float:
    """Fits one stack to the rounds ``names`` on all tokens of ``rows``, beside the stacks ``context``, writes it into
    ``folder`` and attaches it as ``stack``. Returns the mean share of energy that it misses."""
    tuner, model = stacked.tuner, stacked.base.model
    stacked.fire([*context, *names])
    model.eval()
    decoder, _, _ = decoder_and_head(model)
    with tuner.measuring_merge(names) as moments:
        for row in rows:  # one at a time: padding must not count
            decoder(input_ids=torch.tensor([row.input_ids], device=model.device), use_cache=False)
    tensors, missed = {}, []
    for place, (path, site) in enumerate(zip(tuner.site_names(), tuner.sites, strict=True)):
        a_MI = torch.cat([site.stack_A[name].flatten(0, 1) for name in names])
        b_MO = torch.cat([site.stack_B[name].flatten(0, 1) for name in names])
        fitted = merge(moments.gram_PXX[place], a_MI, b_MO, site.experts, site.rank)
        parts = {"stack_A": fitted.a_ERI, "stack_B": fitted.b_ERO}
        parts |= {part: getattr(site, part)[names[0]].float().cpu() for part in ("stack_router", "stack_noise")}
        tensors |= {tensor_key(path, part): tensor.contiguous() for part, tensor in parts.items()}
        missed.append(fitted.missed)
    config = tuner.peft_config[names[0]]
    assert isinstance(config, StackConfig)
    config = dataclasses.replace(config, round=stack.round)
    write_adapter(folder, config, tensors)
    assert stacked.peft is not None
    stacked.peft.add_adapter(stack.name, config)
    set_peft_model_state_dict(stacked.peft, tensors, adapter_name=stack.name)
    return statistics.fmean(missed)


def _judged(
    stacked: StackedBase, sides: dict[str, list[str]], rows: Sequence[EncodedRow], batch_tokens: int
) -> tuple[dict[str, list[RowLoss]], dict[str, float]]:
    """Losses of ``rows`` and the seconds of a pass, by side; sides take turns, and no first pass counts."""
    batches = plan_batches([len(row.input_ids) for row in rows], batch_tokens)
    losses: dict[str, list[RowLoss]] = {}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(1 + PASSES):
        for side, names in sides.items():
            stacked.fire(names)
            started, found = time.monotonic(), {}
            for batch in batches:
                found |= zip(batch, score_batch(stacked, [rows[place] for place in batch]), strict=True)
            if turn:
                seconds[side].append(time.monotonic() - started)
            losses[side] = [found[place] for place in range(len(rows))]
    return losses, {side: statistics.median(taken) for side, taken in seconds.items()}
