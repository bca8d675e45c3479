"""Rounds of alignment in miniature, for the domains of ``tiny_campaign``: preferences for a politer word, and a reward
that a random model gets now and then.

write_pairs(folder)                                           # beside the inputs of tiny_campaign
config = aligned(campaign(folder, ...), {"aa": tiny_round(folder, "dpo")})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bs_cluster.config.schema import CampaignConfig

Entry = dict[str, Any]


def an_even_start(prompt: str, completion: str, answer: str) -> bool:
    return bool(answer) and ord(answer[0]) % 2 == 0


def write_pairs(folder: Path) -> Path:
    words = [json.loads(line)["completion"] for line in (folder / "aa.jsonl").read_text().splitlines()]
    pairs = [{"prompt": f"say {word}", "chosen": f"please {word}", "rejected": f"never {word}"} for word in words]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    return folder


def tiny_round(folder: Path, kind: str, **entry: Any) -> Entry:
    """An entry of ``domains[].rounds``."""
    of_kind: dict[str, Entry] = {
        "dpo": {"source": {"kind": "jsonl", "path": str(folder / "pairs.jsonl")}, "global_batch": 8},
        "grpo": {
            "source": {"kind": "jsonl", "path": str(folder / "bb.jsonl"), "verify": f"{__name__}:an_even_start"},
            "global_batch": 2,
            "group": 4,
            "answer_tokens": 4,
            "max_kl": 9,
        },
    }
    made = {"objective": kind, "held_out": 12, "steps": 4, "eval_every": 2, "learning_rate": 5e-3, **of_kind[kind]}
    return {**made, "per_device_batch": 2, "max_loss_rise": 9, **entry}


def with_rounds(settings: Mapping[str, Any], rounds: Mapping[str, Entry]) -> dict[str, Any]:
    """A config's settings, its supervised rounds of these domains followed by one of alignment each."""
    domains = [
        {**domain, "rounds": [{"objective": "sft"}, rounds[domain["name"]]]} if domain["name"] in rounds else domain
        for domain in settings["domains"]
    ]
    return {**settings, "domains": domains}


def aligned(config: CampaignConfig, rounds: Mapping[str, Entry]) -> CampaignConfig:
    return CampaignConfig.model_validate(with_rounds(config.model_dump(mode="json"), rounds))
