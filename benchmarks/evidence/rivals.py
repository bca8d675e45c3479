"""PEFT LoRAs on one base: trained, loaded, merged, scored. A folder keeps them, so that none is trained twice."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import ArrowConfig, PeftModel, create_arrow_model, get_peft_model

from benchmarks.evidence.campaign import Batch
from benchmarks.lora import learn, lora_config
from bs_cluster.base.load import load_base
from bs_cluster.config.schema import BaseSection, TrainingSection
from bs_cluster.data.batch import plan_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.inference.scoring import score_batch
from bs_cluster.inference.stacked import StackedBase

# One step of Adam moves the output of such a LoRA about as far as that of a stack of two of four experts at scale 4
# (benchmarks/convergence.py); what is left to choose is the rate.
SCALE = 1.0


class Rivals:
    """The frozen base with LoRAs of one rank. ``folder`` keeps what was trained."""

    def __init__(self, base: BaseSection, folder: Path, rank: int, batch_tokens: int):
        self.bare = StackedBase(load_base(base, device="cpu"), cache_dequantized=False)
        self.model = self.bare.base.model
        self.folder, self.rank, self.batch_tokens = folder, rank, batch_tokens
        self.peft: PeftModel | None = None

    def train(
        self, name: str, batches: Sequence[Batch], training: TrainingSection, seed: int, start: str | None = None
    ) -> tuple[float, int]:
        """The LoRA called ``name`` becomes active, trained on these batches from zero or from the trained one called
        ``start``; seconds that it took, and how many parameters it has."""
        if not self._file(name).exists():
            began = time.monotonic()
            self._add(name, seed, start)
            assert self.peft is not None
            self.peft.set_adapter(name)
            learned = {key: p for key, p in self.peft.named_parameters() if p.requires_grad}
            told = training.model_copy(update={"steps": len(batches)})
            learn(self.model, learned, batches, told)
            self._keep(name, time.monotonic() - began, sum(p.numel() for p in learned.values()))
        self.activate(name)
        told = json.loads(self._file(name).read_text())
        return told["seconds"], told["parameters"]

    def activate(self, name: str) -> None:
        if self.peft is None or name not in self.peft.peft_config:
            self._load(name, name, trainable=False)
        assert self.peft is not None
        self.peft.set_adapter(name)

    def merge(self, name: str, of: Sequence[str], kind: str, weight: float, density: float | None, seed: int) -> int:
        """PEFT's own merge of these, each with this weight, becomes active; how many parameters it has."""
        for one in of:
            self.activate(one)
        assert self.peft is not None
        self.drop(name)
        torch.manual_seed(seed)  # DARE drops at random
        merged: Any = self.peft.base_model
        merged.add_weighted_adapter(list(of), [weight] * len(of), name, combination_type=kind, density=density)
        self.peft.set_adapter(name)
        return sum(p.numel() for key, p in self.peft.named_parameters() if f".{name}." in key)

    def drop(self, name: str) -> None:
        if self.peft is not None and name in self.peft.peft_config:
            self.peft.delete_adapter(name)

    def score(self, rows: Sequence[EncodedRow]) -> tuple[float, ...]:
        """Summed loss of each row under what is active, in batches like those of the campaign's sweep."""
        found: dict[int, float] = {}
        for batch in plan_batches([len(row.input_ids) for row in rows], self.batch_tokens):
            losses = score_batch(self.bare, [rows[place] for place in batch])
            found |= {place: loss.nll for place, loss in zip(batch, losses, strict=True)}
        return tuple(round(found[place], 4) for place in range(len(rows)))

    def _add(self, name: str, seed: int, start: str | None) -> None:
        if start is not None:
            self._load(name, start, trainable=True)
            return
        torch.manual_seed(seed)
        if self.peft is None:
            self.peft = get_peft_model(self.model, lora_config(self.rank, SCALE), adapter_name=name)  # type: ignore[assignment]
        else:
            self.peft.add_adapter(name, lora_config(self.rank, SCALE))

    def _load(self, name: str, stored: str, trainable: bool) -> None:
        folder = str(self._place(stored) / "adapter")
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name, is_trainable=trainable)
        else:
            self.peft.load_adapter(folder, adapter_name=name, is_trainable=trainable)

    def _keep(self, name: str, seconds: float, parameters: int) -> None:
        assert self.peft is not None
        unready = self.folder / "unready"
        shutil.rmtree(unready, ignore_errors=True)
        self.peft.save_pretrained(str(unready), selected_adapters=[name])
        (unready / name).rename(unready / "adapter")  # under its name, whatever is called ``default``
        (unready / "trained.json").write_text(json.dumps({"seconds": seconds, "parameters": parameters}))
        os.replace(unready, self._place(name))

    def _place(self, name: str) -> Path:
        return self.folder / name

    def _file(self, name: str) -> Path:
        return self._place(name) / "trained.json"


def arrow(base: BaseSection, folders: Sequence[Path], batch_tokens: int, rows: Sequence[EncodedRow]) -> Any:
    """Losses of the rows under PEFT's Arrow routing of these LoRAs, as PEFT sets it by default (three of them a token),
    but for its seed."""
    rivals = Rivals(base, folders[0].parent, 0, batch_tokens)
    paths = [str(folder / "adapter") for folder in folders]
    config = ArrowConfig(top_k=min(3, len(paths)), rng_seed=0)
    rivals.peft = create_arrow_model(rivals.model, paths, config)
    rivals.peft.eval()
    return rivals.score(rows)
