"""What a domain's rounds would lose and save as one stack of the same shape. Nothing is committed.

The merged stack is fitted on the domain's own training rows as the store holds them, and judged on its validation and
sweep rows, of which neither the fit nor a choice in it has seen one.

Shapes: P sites.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import set_peft_model_state_dict

from bs_cluster.adapter_format import CONFIG_NAME, WEIGHTS_NAME, tensor_key
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.decoder import decoder_and_head
from bs_cluster.errors import UsageError
from bs_cluster.estimates import Estimate, paired_difference, token_mean
from bs_cluster.inference.scoring import score_batch
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import Record, RowLoss, StackId
from bs_cluster.stacks import StackConfig
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.stacks.compression import merge
from bs_cluster.store import Store

PASSES = 5  # over the judging rows, of each side in turns, to time a forward


@dataclasses.dataclass(frozen=True)
class Compression(Record):
    """``change`` is the merged stack's loss less the rounds', paired by row, and ``first_round`` that of the first
    round alone: what merging has to beat. ``missed`` is the mean share of the rounds' written energy that the merged
    stack misses at a site. Seconds are of a forward over all rows, the median of ``PASSES``."""

    domain: str
    rounds: tuple[str, ...]
    loss: float
    merged_loss: float
    change: Estimate
    first_round: Estimate
    missed: float
    bytes: int
    merged_bytes: int
    seconds: float
    merged_seconds: float
    tolerance: float
    within: bool


def compress(
    store: Store, config: CampaignConfig, domain: str, tolerance: float, folder: Path, say: Callable[[str], None]
) -> Compression:
    """Merges the rounds of a closed domain, writes the stack into ``folder`` and measures it. Raises UsageError for a
    domain that is not closed or has fewer than two rounds."""
    record = next((record for record in store.domains() if record.domain == domain), None)
    if record is None:
        raise UsageError(f"the campaign has no closed domain {domain!r}")
    manifests = [manifest for _, manifest in store.stacks() if manifest.stack.domain == domain]
    if len(manifests) < 2:
        raise UsageError(f"{domain} has {len(manifests)} committed round; there is nothing to merge")
    rows = DomainRows.of(record, store.get_bytes)
    say(f"{config.base.model} is loaded")
    stacked = StackedBase.load(config.base, "cpu")
    for manifest in manifests:
        stacked.attach(manifest, store)
    names = [manifest.stack.name for manifest in manifests]
    say(f"{', '.join(names)} are merged on {len(rows.train)} training rows")
    merged, missed = add_merged(stacked, names, rows.train, folder)
    say("both are scored and timed")
    judging = [*rows.sweep, *rows.validation]
    sides = {"rounds": names, "merged": [merged], "first": names[:1]}
    losses, seconds = _judged(stacked, sides, judging, config.training.eval_batch_tokens)
    change = paired_difference(losses["merged"], losses["rounds"])
    return Compression(
        domain=domain,
        rounds=tuple(names),
        loss=token_mean(losses["rounds"]),
        merged_loss=token_mean(losses["merged"]),
        change=change,
        first_round=paired_difference(losses["first"], losses["rounds"]),
        missed=missed,
        bytes=sum(m.file(name).size for m in manifests for name in (CONFIG_NAME, WEIGHTS_NAME)),
        merged_bytes=sum((folder / name).stat().st_size for name in (CONFIG_NAME, WEIGHTS_NAME)),
        seconds=seconds["rounds"],
        merged_seconds=seconds["merged"],
        tolerance=tolerance,
        within=change.high <= tolerance,
    )


@torch.no_grad()
def add_merged(
    stacked: StackedBase, names: Sequence[str], rows: Sequence[EncodedRow], folder: Path
) -> tuple[str, float]:
    """Fits one stack to the rounds ``names`` on all tokens of ``rows``, writes it into ``folder`` and attaches it, as
    the round after the last. Returns its name and the mean share of energy that it misses."""
    tuner, model = stacked.tuner, stacked.base.model
    stacked.fire(names)
    model.eval()
    decoder, _, _ = decoder_and_head(model)
    with tuner.measuring_merge(names) as moments:
        for row in rows:  # one at a time: padding must not count
            decoder(input_ids=torch.tensor([row.input_ids], device=model.device), use_cache=False)
    last, tensors, missed = StackId.parse(names[-1]), {}, []
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
    config = dataclasses.replace(config, round=last.round + 1)
    write_adapter(folder, config, tensors)
    name = StackId(last.domain, last.round + 1).name
    assert stacked.peft is not None
    stacked.peft.add_adapter(name, config)
    set_peft_model_state_dict(stacked.peft, tensors, adapter_name=name)
    return name, statistics.fmean(missed)


def _judged(
    stacked: StackedBase, sides: dict[str, list[str]], rows: Sequence[EncodedRow], batch_tokens: int
) -> tuple[dict[str, list[RowLoss]], dict[str, float]]:
    """Losses of ``rows`` and the seconds of a pass, by side; sides take turns, and no first pass counts."""
    plan = plan_batches([len(row.input_ids) for row in rows], batch_tokens)
    losses: dict[str, list[RowLoss]] = {}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(1 + PASSES):
        for side, names in sides.items():
            stacked.fire(names)
            started, found = time.monotonic(), {}
            for batch in plan:
                found |= zip(batch, score_batch(stacked, [rows[place] for place in batch]), strict=True)
            if turn:
                seconds[side].append(time.monotonic() - started)
            losses[side] = [found[place] for place in range(len(rows))]
    return losses, {side: statistics.median(taken) for side, taken in seconds.items()}
