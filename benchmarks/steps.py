"""Training steps side by side: what a user would pick instead, and what frozen stacks cost."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.settings import Settings
from benchmarks.table import Table, Target
from benchmarks.timing import medians, take_turns
from benchmarks.variants import Variant, frozen_base, multiply_adds, our_stacks, peft_lora, textbook_stacks

FROZEN = (1, 4, 9, 19)
TEXTBOOK_FROZEN = (1, 4, 9)


def measure(settings: Settings) -> list[Table]:
    where = (settings.base, settings.device, settings.rows, settings.tokens)
    alone = {
        "frozen base": frozen_base(*where),
        "PEFT LoRA r=64": peft_lora(*where),
        "one stack 4×16": our_stacks(*where, 0, learns=True, cached=False),
        "one stack 4×16, base weights cached": our_stacks(*where, 0, learns=True, cached=True),
        "one stack 4×16, textbook form": textbook_stacks(*where, 0, learns=True),
    }
    first = _table("Training step", alone, settings, "PEFT LoRA r=64")
    lora = {row[0]: row[3] for row in first.rows}
    first.targets = [
        Target("step with one stack / PEFT LoRA r=64", lora["one stack 4×16"], 1.0),
        Target("step with one stack, base weights cached / PEFT LoRA r=64", lora[list(alone)[3]], 1.0),
    ]
    base = alone["frozen base"]
    del alone

    beside: dict[str, Variant] = {"frozen base": base}
    for frozen in FROZEN:
        beside[f"one stack beside {frozen}"] = our_stacks(*where, frozen, learns=True, cached=True)
    second = _table("Training step beside frozen stacks (base weights cached)", beside, settings, "frozen base")
    ours, theirs = multiply_adds(base.model)[::-1]
    second.columns = (*second.columns, "its products / the base's")
    # Both differentiate what they are given, and the stack that learns its weights besides.
    second.rows = [
        (*row, 1 + (frozen + 1.5) * ours / theirs if frozen else 1.0)
        for row, frozen in zip(second.rows, (0, *FROZEN), strict=True)
    ]
    seconds = {row[0]: row[1] for row in second.rows}
    second.targets = [
        Target("step beside 9 frozen stacks / frozen base", seconds["one stack beside 9"] / seconds["frozen base"], 1.7)
    ]

    forms = {"frozen base": base, "one stack beside 9": beside["one stack beside 9"]}
    del beside
    for frozen in TEXTBOOK_FROZEN:
        forms[f"one stack beside {frozen}, textbook form"] = textbook_stacks(*where, frozen, learns=True)
    short = replace(settings, rounds=max(1, settings.rounds // 2))
    third = _table("The textbook form beside frozen stacks", forms, short, "one stack beside 9")
    seconds = {row[0]: row[1] for row in third.rows}
    ours, theirs = seconds["one stack beside 9"], seconds["one stack beside 9, textbook form"]
    third.targets = [Target("textbook form beside 9 frozen stacks / ours", theirs / ours, 3.0, at_least=True)]
    return [first, second, third]


def _table(title: str, variants: dict[str, Variant], settings: Settings, against: str) -> Table:
    seconds = medians(take_turns({k: v.step for k, v in variants.items()}, settings.rounds, settings.device))
    compared = dict.fromkeys(("frozen base", against))
    table = Table(
        f"{title}: {settings.base}",
        ("what", "seconds", *(f"× {other}" for other in compared)),
        note=f"Forward and backward of the completion loss, {settings.rows}×{settings.tokens} tokens, half of them "
        "completion; no optimiser.",
    )
    for name, value in seconds.items():
        table.rows.append((name, value, *(value / seconds[other] for other in compared)))
    return table
