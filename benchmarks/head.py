"""What a head in fp32 would cost where rows are scored, and how far its losses are from those of the base's own dtype.

Shapes: B rows, T tokens, N label positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch

from benchmarks.settings import Settings
from benchmarks.table import Table
from benchmarks.timing import medians, take_turns
from benchmarks.variants import frozen_base
from bs_cluster.decoder import decoder_and_head
from bs_cluster.stacks.lm_loss import HeadLoss


@torch.no_grad()
def measure(settings: Settings) -> list[Table]:
    base = frozen_base(settings.base, settings.device, settings.rows, settings.tokens)
    base.model.eval()
    decoder, head, softcap = decoder_and_head(base.model)
    kept_VH = head.weight.detach().float()
    labelled_BT = base.labels_BT[:, 1:] != -100
    labels_N = base.labels_BT[:, 1:][labelled_BT]

    def score(weight_VH: torch.Tensor) -> torch.Tensor:
        hidden_BTH = decoder(input_ids=base.ids_BT, use_cache=False).last_hidden_state
        hidden_NH = hidden_BTH[:, :-1][labelled_BT].to(weight_VH.dtype)
        return HeadLoss.apply(hidden_NH, weight_VH, labels_N, softcap)  # type: ignore[return-value]

    dtype = str(head.weight.dtype).removeprefix("torch.")
    cases = {
        f"head in {dtype}": lambda: score(head.weight),
        "head in fp32, weight kept": lambda: score(kept_VH),
        "head in fp32, weight converted": lambda: score(head.weight.float()),
    }
    seconds = medians(take_turns(cases, settings.rounds, settings.device))
    apart_N = score(head.weight) - score(kept_VH)
    plain = next(iter(seconds.values()))
    return [
        Table(
            f"A scoring pass, {settings.rows} × {settings.tokens} tokens: {settings.base}",
            ("what", "seconds", f"× {next(iter(seconds))}"),
            [(name, value, value / plain) for name, value in seconds.items()],
            note=f"Half of the tokens are scored. A token's loss differs by {float(apart_N.std()):.4f} nats (standard "
            f"deviation), the mean of {len(apart_N)} by {float(apart_N.mean()):.5f}. The kept weight takes "
            f"{kept_VH.nbytes / 2**20:.0f} MiB a process.",
        )
    ]
