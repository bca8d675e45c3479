"""Continuous batching: rows under different gates share a step, and join or leave between two.

    engine.join([Row(prompt, {"math": 1.0}, Sampling(), 64)])    # reads the prompt, gives the first token
    while engine.rows:
        engine.step()                                           # a token for every row; those that ended leave

Nothing here knows of text, threads or HTTP. In float32 a row's tokens are those that it has alone, whatever shares its
batch and whenever that came; in bfloat16 a batch rounds differently, which can decide between two tokens that are
nearly tied.

Shapes: B rows, T tokens, D domains, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from bs_cluster.data.batch import pad
from bs_cluster.decoder import decoder_and_head
from bs_cluster.inference.generate import end_tokens
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.key_values import KeyValues
from bs_cluster.serving.sampling import Sampling, draw


@dataclass(eq=False)
class Row:
    """An answer under way. ``gates`` are domain to weight, a domain not named is off; ``tokens`` grows with each step,
    the end token included; ``ended`` says why there are no more."""

    prompt: Sequence[int]
    gates: Mapping[str, float]
    sampling: Sampling
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    ended: Literal["stop", "length"] | None = None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


class Engine:
    """The batch that runs on one base. ``rows`` are those under way, each in the slot of its place; a prompt and its
    answer have ``length`` tokens together at most."""

    def __init__(self, stacked: StackedBase, slots: int, length: int):
        self.stacked, self.slots, self.length = stacked, slots, length
        self.rows: list[Row] = []
        self._key_values = KeyValues(slots, length)
        self._generators: dict[Row, torch.Generator] = {}
        self._decoder, self._head, self._softcap = decoder_and_head(stacked.base.model)
        self._config = stacked.base.model.config.get_text_config()
        self._ends = frozenset(end_tokens(stacked))
        self._device = stacked.base.model.device

    @property
    def free(self) -> int:
        return self.slots - len(self.rows)

    def join(self, rows: Sequence[Row]) -> None:
        """New rows: their prompts are read as one batch, and each has its first token."""
        assert len(rows) <= self.free, f"{len(rows)} rows for {self.free} free slots"
        assert all(row.length + row.max_tokens <= self.length for row in rows), f"a row longer than {self.length}"
        ids_BT = pad([row.prompt for row in rows], self.stacked.base.tokenizer.pad_token_id)  # type: ignore[arg-type]
        position_BT = torch.arange(ids_BT.shape[1]).expand(ids_BT.shape)
        hidden_BTH = self._forward(len(self.rows), rows, ids_BT, position_BT)
        last_B = torch.tensor([len(row.prompt) - 1 for row in rows])
        for row in rows:
            if row.sampling.temperature > 0:
                self._generators[row] = row.sampling.generator(self._device)
        self.rows += rows
        self._choose(rows, hidden_BTH[torch.arange(len(rows)), last_B])

    def step(self) -> list[Row]:
        """One more token for every row; gives the rows that have it."""
        rows = list(self.rows)
        ids_B1 = torch.tensor([[row.tokens[-1]] for row in rows])
        position_B1 = torch.tensor([[row.length - 1] for row in rows])
        self._choose(rows, self._forward(0, rows, ids_B1, position_B1)[:, 0])
        return rows

    def leave(self, row: Row) -> None:
        """Frees a row's slot; the last row moves into it."""
        place, last = self.rows.index(row), self.rows.pop()
        self._generators.pop(row, None)
        if last is not row:
            self._key_values.move(len(self.rows), place, last.length)
            self.rows[place] = last

    def clear(self) -> None:
        """All rows leave."""
        self.rows.clear()
        self._generators.clear()

    @torch.no_grad()
    def _forward(
        self, first: int, rows: Sequence[Row], ids_BT: torch.Tensor, position_BT: torch.Tensor
    ) -> torch.Tensor:
        """Hidden states (B, T, H) after the final norm, each row under its own gates."""
        domains = sorted({domain for row in rows for domain, weight in row.gates.items() if weight})
        weights_BD = torch.tensor([[row.gates.get(domain, 0.0) for domain in domains] for row in rows])
        position_BT = position_BT.to(self._device)
        self._key_values.at(first, position_BT)
        with self.stacked.tuner.gates(weights_BD.to(self._device), domains):
            return self._decoder(
                input_ids=ids_BT.to(self._device),
                position_ids=position_BT,
                attention_mask=self._key_values.masks(self._config),
                past_key_values=self._key_values,
                use_cache=True,
            ).last_hidden_state

    @torch.no_grad()
    def _choose(self, rows: Sequence[Row], hidden_BH: torch.Tensor) -> None:
        logits_BV = self._head(hidden_BH.contiguous())
        if self._softcap is not None:
            logits_BV = self._softcap * torch.tanh(logits_BV / self._softcap)
        tokens = logits_BV.float().argmax(dim=-1).tolist()
        for row, token, logits_V in zip(rows, tokens, logits_BV, strict=True):
            drawn = draw(logits_V, row.sampling, self._generators[row]) if row in self._generators else token
            row.tokens.append(drawn)
            if drawn in self._ends:
                row.ended = "stop"
            elif len(row.tokens) == row.max_tokens:
                row.ended = "length"
        for row in rows:
            if row.ended:
                self.leave(row)
