"""Run as a program: loads stacks in several orders in a process that has never seen them, and keeps the logits.

python reload_stacks.py <settings.json>      {"base", "ids", "orders": [[[name, folder], ...], ...], "out"}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel

import bs_cluster.stacks  # noqa: F401  # makes the method known to PEFT
from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection

settings = json.loads(Path(sys.argv[1]).read_text())
ids_BT = torch.tensor(settings["ids"])
results = []
for order in settings["orders"]:
    model = load_base(BaseSection(model=settings["base"]), device="cpu").model
    (first, folder), *rest = order
    peft = PeftModel.from_pretrained(model, folder, adapter_name=first)
    for name, other in rest:
        peft.load_adapter(other, adapter_name=name)
    peft.base_model.fire([name for name, _ in order])
    with torch.no_grad():
        results.append(peft(input_ids=ids_BT).logits)
torch.save(results, settings["out"])
