"""The probe of a domain: logits of a few of its own rows under its own stacks alone, as digests of their very bits.

Which rows is a rule, so that nothing has to be kept beside the rows: whoever has them has the probe set. A forward
pass holds one row, without padding, and one thread computes it, so that bits hang on nothing that differs between a
training worker, an evaluator and somebody who recomputes them later on a like machine. What they still hang on is told
with them.

Shapes: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F

from bs_cluster import __version__
from bs_cluster.base.threads import one_thread
from bs_cluster.data.encode import EncodedRow
from bs_cluster.decoder import decoder_and_head
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import Probe, ProbedRow

# At most 67 MB of logits a row with Gemma's vocabulary in bf16; a cut row keeps its beginning.
PROBE_TOKENS = 128
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@torch.no_grad()
def probe(stacked: StackedBase, names: Sequence[str], rows: Sequence[EncodedRow]) -> Probe:
    """Each row's first ``PROBE_TOKENS`` tokens while the stacks ``names`` fire and no others; what fired before fires
    again after. A digest is over the logits (T, V) in the type that the head gives, row by row, little-endian."""
    before = stacked.tuner.composition.firing if stacked.peft is not None else ()
    stacked.fire(names)
    stacked.base.model.eval()
    try:
        with one_thread():
            probed = tuple(_probed(stacked, row) for row in rows)
            return Probe(probed, environment(stacked.base.model.device))
    finally:
        stacked.fire(before)


def environment(device: torch.device) -> dict[str, str]:
    """What the bits of a forward pass in this process hang on besides weights, tokens and the settings of the base."""
    found = {name: version(name) for name in PACKAGES} | {"bs_cluster": __version__, "torch": torch.__version__}
    if device.type == "cuda":
        return found | {"device": torch.cuda.get_device_name(device)}
    processor = f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"
    return found | {"device": processor, "threads": str(torch.get_num_threads())}


def _probed(stacked: StackedBase, row: EncodedRow) -> ProbedRow:
    decoder, head, softcap = decoder_and_head(stacked.base.model)
    ids_T = torch.tensor(row.input_ids[:PROBE_TOKENS], device=stacked.base.model.device)
    hidden_TH = decoder(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
    logits_TV = head(hidden_TH)
    if softcap is not None:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    loss = float(F.cross_entropy(logits_TV[:-1].float(), ids_T[1:]))
    data = logits_TV.cpu().reshape(-1).view(torch.uint8).numpy().data
    return ProbedRow(row.id, hashlib.sha256(data).hexdigest(), loss if math.isfinite(loss) else None)


def _processor() -> str:
    """The processor's name, family and model, and what it has for bf16, as far as the system tells."""
    told = Path("/proc/cpuinfo")
    if not told.exists():
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for line in told.read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    for_bf16 = sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(facts.get("flags", facts.get("Features", "")).split()))
    known = [facts[name] for name in ("model name", "cpu family", "model", "CPU part") if name in facts]
    return " ".join([*known, *for_bf16])
