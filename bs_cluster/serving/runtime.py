"""Answering prompts from a bundle: route, then generate under the gates that the meta-router gave.

Shapes: B prompts, D domains.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bs_cluster.data.encode import encode_prompt, encode_router_prompt
from bs_cluster.data.rows import Prompt
from bs_cluster.errors import ConfigError, NotInStoreError, UsageError
from bs_cluster.inference.evaluator import encode_states
from bs_cluster.inference.generate import drawn_answers, greedy_answers
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import BundleManifest, StackManifest, StackRef
from bs_cluster.router.files import load_router
from bs_cluster.store.bundle_config import bundle_config
from bs_cluster.store.store import Store


@dataclass(frozen=True)
class Answer:
    """A completion and the gate weight per domain that it was generated under."""

    text: str
    gates: Mapping[str, float]


class BundleRuntime:
    """A bundle in memory: base, its stacks and its meta-router. What was trained is what is served: the same
    prompt encoding, the same gates, the same layer."""

    def __init__(
        self,
        store: Store,
        bundle: BundleManifest,
        device: str | torch.device,
        stacked: StackedBase | None = None,
        attach: Callable[[StackManifest, Store], None] | None = None,
    ):
        """With ``stacked`` on the base and beside the stacks that are there, such as those of the bundle before;
        ``attach`` sees to it that a stack is there when it is to fire, and without it all are at once."""
        self.config = bundle_config(store, bundle)
        self.number, self.domains = bundle.number, bundle.domains
        self.stacked = stacked or StackedBase.load(self.config.base, device)
        self.stacks = tuple(ref.stack for ref in bundle.stacks)
        for ref in bundle.stacks:
            (attach or self.stacked.attach)(store.manifest(ref.manifest), store)
        self.stacked.fire(self.stacked.names)
        hidden = self.stacked.base.model.config.get_text_config().hidden_size
        with tempfile.TemporaryDirectory() as folder:
            for name in ("router.safetensors", "router.json"):
                (Path(folder) / name).write_bytes(store.get_bytes(bundle.file(name).sha256))
            self.served, self.card = load_router(Path(folder), self.domains, hidden, bundle.base.digest)

    def gates(self, prompts: Sequence[str]) -> torch.Tensor:
        """Served gate weights (B, D) of these prompts."""
        return self.route([self.router_ids(prompt) for prompt in prompts])

    def firing(self, gates: Mapping[str, float]) -> list[str]:
        """The stacks that fire under these gates."""
        return [stack.name for stack in self.stacks if gates.get(stack.domain)]

    def router_ids(self, prompt: Prompt) -> list[int]:
        """A prompt as the meta-router reads it."""
        return encode_router_prompt(prompt, self.stacked.base.tokenizer, self.config.data, self.card.max_prompt_length)

    def route(self, router_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Served gate weights (B, D) of prompts as ``router_ids`` gives them."""
        states = encode_states(self.stacked, router_ids, self.card.mid_weight, self.card.pooled)
        return torch.from_numpy(self.served.gates(states)).float()

    def answer(
        self,
        prompts: Sequence[str],
        weights_BD: torch.Tensor | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
    ) -> list[Answer]:
        """Completions under the meta-router's gates or the given ones, greedy or drawn."""
        if weights_BD is None:
            weights_BD = self.gates(prompts)
        if self.stacked.peft is None:
            raise NotInStoreError("this bundle holds no stack; train a domain first")
        ids = [encode_prompt(prompt, self.stacked.base.tokenizer, self.config.data) for prompt in prompts]
        texts = _answers(self.stacked, ids, weights_BD, self.domains, max_new_tokens, temperature)
        gates = [dict(zip(self.domains, row, strict=True)) for row in weights_BD.tolist()]
        return [Answer(text, row) for text, row in zip(texts, gates, strict=True)]

    def fixed_gates(self, on: Sequence[str], rows: int) -> torch.Tensor:
        """Gate weights (B, D) with just these domains at one. Raises ConfigError for a domain not in the bundle."""
        unknown = sorted(set(on) - set(self.domains))
        if unknown:
            raise ConfigError([f"domain {unknown[0]!r} is not in the bundle; it has {', '.join(self.domains)}"])
        return torch.tensor([[float(domain in on) for domain in self.domains]] * rows)


class DomainRuntime:
    """A domain alone in memory: the base and its rounds from the first to one of them, all at full strength."""

    def __init__(self, store: Store, rounds: Sequence[StackRef], device: str | torch.device):
        """Under the settings of the newest bundle that holds these rounds. Raises NotInStoreError where none does."""
        domain, last = rounds[-1].stack.domain, rounds[-1].stack.name
        holding = [bundle for _, _, bundle in store.bundles() if set(rounds) <= set(bundle.stacks)]
        if not holding:
            raise NotInStoreError(f"no bundle of campaign {store.campaign!r} holds {last} yet; its job has to finish")
        self.config, self.domain = bundle_config(store, holding[-1]), domain
        self.stacked = StackedBase.load(self.config.base, device)
        for ref in rounds:
            self.stacked.attach(store.manifest(ref.manifest), store)
        self.stacked.fire(self.stacked.names)

    def answer(self, prompts: Sequence[str], max_new_tokens: int = 64, temperature: float = 0.0) -> list[Answer]:
        """Completions by this domain, greedy or drawn."""
        ids = [encode_prompt(prompt, self.stacked.base.tokenizer, self.config.data) for prompt in prompts]
        texts = _answers(self.stacked, ids, torch.ones(len(ids), 1), [self.domain], max_new_tokens, temperature)
        return [Answer(text, {self.domain: 1.0}) for text in texts]


def _answers(
    stacked: StackedBase,
    ids: Sequence[Sequence[int]],
    weights_BD: torch.Tensor,
    domains: Sequence[str],
    max_new_tokens: int,
    temperature: float,
) -> list[str]:
    """Temperature 0 is the likeliest token each time. Raises UsageError for what no answer can have."""
    if max_new_tokens < 1 or not temperature >= 0:
        raise UsageError(
            f"max_new_tokens {max_new_tokens} and temperature {temperature}: at least 1 token, a temperature of 0 or "
            "more"
        )
    if temperature == 0:
        return greedy_answers(stacked, ids, weights_BD, domains, max_new_tokens)
    return drawn_answers(stacked, ids, weights_BD, domains, max_new_tokens, temperature)
