"""What an evaluator actor is: a base with every committed stack, scoring rows, encoding prompts, answering them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import set_peft_model_state_dict

from bs_cluster.base.hidden import pool_states, router_states
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.batch import pad
from bs_cluster.data.encode import EncodedRow
from bs_cluster.failpoints import failpoint
from bs_cluster.inference.generate import Drawing, drawn_tokens, greedy_answers, greedy_tokens
from bs_cluster.inference.probe import probe
from bs_cluster.inference.scoring import score_routed
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import Probe, RowLoss, StackId
from bs_cluster.stacks import StackConfig
from bs_cluster.store.store import Store


@dataclass(frozen=True)
class Policy:
    """What another process answers with now: its stacks that fire and, where one learns there, that one's configuration
    and tensors (``StackModel.folded``). Another ``version`` is another policy."""

    version: str
    firing: tuple[str, ...]
    config: dict[str, Any] | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Evaluator:
    """Holds all stacks of a campaign at once; which of them a row sees is its gate weights' business."""

    def __init__(self, config: dict[str, Any], domains: Sequence[str]):
        self.config = CampaignConfig.model_validate(config)
        if self.config.sweep.threads_per_evaluator:
            torch.set_num_threads(self.config.sweep.threads_per_evaluator)
        self.domains = tuple(domains)
        device = "cuda" if self.config.sweep.gpus_per_evaluator else "cpu"
        self.stacked = StackedBase.load(self.config.base, device)
        store = Store(self.config.store.uri, self.config.campaign)
        for _, manifest in store.stacks():
            self.stacked.attach(manifest, store)
        self.stacked.fire(self.stacked.names)
        self.followed = ""  # the policy of another process that fires here, by its version

    def score(self, rows: Sequence[EncodedRow], weights: Sequence[Sequence[float]]) -> tuple[RowLoss, ...]:
        """One batch: each row under its own gate weights, one per domain in the campaign's order."""
        failpoint("sweep.score")
        return tuple(score_routed(self.stacked, rows, weights, self.domains))

    def encode(self, prompts: Sequence[Sequence[int]], pooled: bool) -> list[np.ndarray]:
        """Router states of each prompt, from the base alone: see ``encode_states``."""
        failpoint("router.encode")
        return encode_states(self.stacked, prompts, self.config.router.mid_weight, pooled)

    def probe(self, domains: Sequence[str], rows: Sequence[Sequence[EncodedRow]]) -> list[Probe]:
        """Each domain's probe on its own rows, with its own stacks alone."""
        return [probe(self.stacked, self.stacked.of(domain), own) for domain, own in zip(domains, rows, strict=True)]

    def answer(self, prompts: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]) -> list[str]:
        """Greedy answers to tokenised prompts as one batch, each under its own gate weights."""
        weights_BD = torch.tensor(weights, dtype=torch.float32)
        return greedy_answers(self.stacked, prompts, weights_BD, self.domains, self.config.sweep.answer_tokens)

    def draw(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None, how: Drawing, policy: Policy
    ) -> list[list[int]]:
        """Continuations of tokenised prompts under ``policy``: from seeds, a row its own, or greedily without."""
        if self.followed != policy.version:
            self._follow(policy)
        if seeds is None:
            return greedy_tokens(self.stacked, prompts, how.tokens)
        return drawn_tokens(self.stacked, prompts, seeds, how.tokens, how.temperature)

    def _follow(self, policy: Policy) -> None:
        firing = list(policy.firing)
        if policy.config is not None:
            settings = StackConfig(**policy.config)
            name = StackId(settings.domain, settings.round).name
            if name not in self.stacked.names:
                self.stacked.begin(settings, seed=0)
            assert self.stacked.peft is not None
            set_peft_model_state_dict(self.stacked.peft, dict(policy.tensors), adapter_name=name)
            for site in self.stacked.tuner.sites:
                site.unpack()
            firing.append(name)
        self.stacked.fire(firing)
        self.followed = policy.version

    def pid(self) -> int:
        return os.getpid()


@torch.no_grad()
def encode_states(
    stacked: StackedBase, prompts: Sequence[Sequence[int]], mid_weight: float, pooled: bool
) -> list[np.ndarray]:
    """Router states of tokenised prompts, encoded as one padded batch with every stack off: each prompt's
    ``pool_states`` (2H,), or all its tokens (T, H). Float32: what mid-layer states reach would overflow float16."""
    firing = stacked.tuner.composition.firing if stacked.peft is not None else ()
    stacked.fire([])
    try:
        device = stacked.base.model.device
        ids_BT = pad(prompts, stacked.base.tokenizer.pad_token_id).to(device)  # type: ignore[arg-type]
        mask_BT = pad([[1] * len(prompt) for prompt in prompts], 0).to(device)
        states_BTH = router_states(stacked.base.model, ids_BT, mask_BT, mid_weight).cpu().numpy()
        states = [states_TH[: len(prompt)] for states_TH, prompt in zip(states_BTH, prompts, strict=True)]
        return [pool_states(states_TH) for states_TH in states] if pooled else states
    finally:
        stacked.fire(firing)
