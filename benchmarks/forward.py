"""Forward only, and generation with a KV cache: what stacks cost where a bundle is evaluated and served."""

from __future__ import annotations

import contextlib

import torch

from benchmarks.settings import Settings
from benchmarks.table import Table, Target
from benchmarks.timing import Step, medians, take_turns
from benchmarks.variants import DOMAIN_SIZE, Variant, batch, frozen_base, multiply_adds, our_stacks, peft_lora

RESIDENT, DOMAINS = 10, 5
NEW_TOKENS = 16
CASES = {  # gate weights of the five domains; two stacks each
    "10 resident, none fires": (0, 0, 0, 0, 0),
    "2 fire (one domain)": (1, 0, 0, 0, 0),
    "4 fire (two domains)": (1, 0, 1, 0, 0),
    "10 fire (all five)": (1, 1, 1, 1, 1),
}


def measure(settings: Settings) -> list[Table]:
    where = (settings.base, settings.device, settings.rows, settings.tokens)
    base, lora = frozen_base(*where), peft_lora(*where)
    ours = our_stacks(*where, RESIDENT, learns=False, cached=settings.device == "cpu")
    for variant in (base, lora, ours):
        variant.model.eval()
    tables = [_forward(base, lora, ours, settings, rows) for rows in (1, 16)]
    tables += [_generation(base, lora, ours, settings, rows) for rows in (1, 16)]
    ratio = next(row[2] for row in tables[1].rows if str(row[0]).startswith("10 fire (all five)"))
    idle = next(row[2] for row in tables[1].rows if str(row[0]).startswith("10 resident"))
    tables[1].targets = [
        Target("forward with 10 frozen stacks / frozen base", ratio, 1.6),
        Target("forward with 10 stacks resident and none firing / frozen base", idle, 1.02),
    ]
    return tables


def gated(ours: Variant, gates: tuple[int, ...], rows: int) -> contextlib.AbstractContextManager[None]:
    """Gate weights that differ from row to row where there are several and more than one domain fires."""
    assert ours.tuner is not None
    weights_BD = torch.tensor([gates] * rows, dtype=torch.float32)
    if rows > 1 and sum(gates) > 1:
        generator = torch.Generator().manual_seed(0)
        weights_BD *= torch.rand(weights_BD.shape, generator=generator) * 0.8 + 0.2
    names = [f"domain{d}" for d in range(DOMAINS)]
    return ours.tuner.gates(weights_BD.to(ours.ids_BT.device), names)


def _forward(base: Variant, lora: Variant, ours: Variant, settings: Settings, rows: int) -> Table:
    vocabulary = base.model.config.get_text_config().vocab_size
    ids_BT, labels_BT = batch(vocabulary, rows, max(16, settings.tokens // 4), settings.device)
    for variant in (base, lora, ours):
        variant.ids_BT, variant.labels_BT = ids_BT, labels_BT

    def ours_with(gates: tuple[int, ...]) -> Step:
        def run() -> None:
            with gated(ours, gates, rows):
                ours.forward()

        return run

    cases: dict[str, Step] = {"frozen base": base.forward, "PEFT LoRA r=64": lora.forward}
    cases |= {name: ours_with(gates) for name, gates in CASES.items()}
    seconds = medians(take_turns(cases, settings.rounds, settings.device))
    theirs, one = multiply_adds(base.model)
    stacks = {"PEFT LoRA r=64": 1} | {name: DOMAIN_SIZE * sum(gates) for name, gates in CASES.items()}
    return Table(
        f"Forward, {rows} × {ids_BT.shape[1]} tokens: {settings.base}",
        ("what", "seconds", "× frozen base", "its products / the base's"),
        [
            (name, value, value / seconds["frozen base"], 1 + stacks.get(name, 0) * one / theirs)
            for name, value in seconds.items()
        ],
        note="Completion loss without gradient" + (", every row with gate weights of its own." if rows > 1 else "."),
    )


def _generation(base: Variant, lora: Variant, ours: Variant, settings: Settings, rows: int) -> Table:
    vocabulary = base.model.config.get_text_config().vocab_size
    ids_BT, _ = batch(vocabulary, rows, 32, settings.device)

    def generate(variant: Variant) -> None:
        variant.model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )

    def ours_with(gates: tuple[int, ...]) -> Step:
        def run() -> None:
            with gated(ours, gates, rows):
                generate(ours)

        return run

    cases: dict[str, Step] = {"frozen base": lambda: generate(base), "PEFT LoRA r=64": lambda: generate(lora)}
    cases |= {name: ours_with(gates) for name, gates in CASES.items()}
    seconds = medians(take_turns(cases, max(2, settings.rounds // 2), settings.device))
    return Table(
        f"Generation with KV cache, batch {rows}: {settings.base}",
        ("what", "tokens/s", "× frozen base's time"),
        [(name, rows * NEW_TOKENS / value, value / seconds["frozen base"]) for name, value in seconds.items()],
        note=f"{NEW_TOKENS} new tokens after a prompt of 32, greedy, prompt included in the time.",
    )
