"""A loaded base and the stacks attached to it, wherever it is used: training workers, evaluators, serving."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from peft import PeftModel, get_peft_model

from bs_cluster.base import LoadedBase, load_base
from bs_cluster.config.schema import BaseSection, StackSection
from bs_cluster.errors import StackError
from bs_cluster.records import StackId, StackManifest
from bs_cluster.stacks import StackConfig, StackModel
from bs_cluster.store.store import Store

log = logging.getLogger(__name__)


class StackedBase:
    """Stacks on a base, by name (``chat_r1``). What fires is set on ``tuner``; with no stack it is the bare base."""

    def __init__(self, base: LoadedBase, cache_dequantized: bool):
        self.base = base
        self.peft: PeftModel | None = None
        self._cache_dequantized = cache_dequantized

    @classmethod
    def load(cls, base: BaseSection, device: str | torch.device) -> StackedBase:
        return cls(load_base(base, device=device), base.cache_dequantized)

    @property
    def tuner(self) -> StackModel:
        if self.peft is None:
            raise StackError("no stack has been attached to this base yet")
        return self.peft.base_model  # type: ignore[return-value]

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.peft is None else tuple(self.tuner.peft_config)

    def attach(self, manifest: StackManifest, store: Store) -> None:
        """Loads a committed stack, frozen. Raises StackError if it was trained on another base."""
        name = manifest.stack.name
        if name in self.names:
            return
        if manifest.base.digest != self.base.ref.digest:
            raise StackError(
                f"stack {name} was trained on {manifest.base.model} ({manifest.base.digest[:12]}), the loaded base is "
                f"{self.base.ref.model} ({self.base.ref.digest[:12]}); load the base that the campaign names"
            )
        folder = store.materialize(manifest)
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.base.model, folder, adapter_name=name)
            self._wrapped()
        else:
            self.peft.load_adapter(folder, adapter_name=name)
        self.peft.eval()

    def begin(self, config: StackConfig, seed: int) -> str:
        """Adds an untrained stack that learns; its starting values follow from ``seed`` alone."""
        name = StackId(config.domain, config.round).name
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        try:
            if self.peft is None:
                self.peft = get_peft_model(self.base.model, config, adapter_name=name)  # type: ignore[assignment]
                self._wrapped()
            else:
                self.peft.add_adapter(name, config)
                # PEFT's forward looks its active adapter up, which may be one that was dropped.
                self.peft.active_adapter = name
        finally:
            torch.set_rng_state(state)
        return name

    def drop(self, name: str) -> None:
        """Removes a stack that will not be kept."""
        assert self.peft is not None
        self.peft.delete_adapter(name)

    def fire(self, names: Sequence[str], train: str | None = None) -> None:
        """Turns on these frozen stacks and no others."""
        if self.peft is None:
            if names or train:
                raise StackError(f"stacks {list(names)} are not attached")
            return
        self.tuner.fire(names, train)

    def _wrapped(self) -> None:
        log.info("wrapped %d projections of %s", len(self.tuner.sites), self.base.ref.model)
        if self._cache_dequantized:
            self.tuner.cache_weights()


def stack_config(settings: StackSection, stack: StackId, position: int) -> StackConfig:
    """The PEFT configuration of one stack of a campaign."""
    return StackConfig(
        task_type="CAUSAL_LM",
        rank=settings.rank,
        experts=settings.experts,
        top_k=settings.top_k,
        alpha=settings.alpha,
        router_init_std=settings.router_init_std,
        target_modules=list(settings.target_modules),
        exclude_modules=list(settings.exclude_modules),
        domain=stack.domain,
        round=stack.round,
        position=position,
    )
