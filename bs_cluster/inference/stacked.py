"""A loaded base and the stacks attached to it, wherever it is used: training workers, evaluators, serving."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import nn

from bs_cluster.adapter_format import tensor_key
from bs_cluster.base.load import LoadedBase, load_base
from bs_cluster.config.schema import BaseSection, StackSection
from bs_cluster.errors import StackError
from bs_cluster.records import StackId, StackManifest
from bs_cluster.stacks import StackConfig, StackModel
from bs_cluster.stacks.config import METHOD
from bs_cluster.store.stack_load import StoredStack
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

    def of(self, domain: str) -> tuple[str, ...]:
        """The stacks of ``domain`` among those attached."""
        return tuple(name for name in self.names if StackId.parse(name).domain == domain)

    def attach(self, manifest: StackManifest, store: Store) -> None:
        """Loads a committed stack, frozen, from verified bytes. Raises StackError if it was trained on another base or
        does not have this base's sites, IntegrityError if its bytes are not what was committed."""
        if manifest.stack.name not in self.names:
            self.add(manifest, store.load_stack(manifest))

    def add(self, manifest: StackManifest, stored: StoredStack) -> None:
        """As ``attach``, of a stack that was read."""
        name = manifest.stack.name
        if manifest.base.digest != self.base.ref.digest:
            raise StackError(
                f"stack {name} was trained on {manifest.base.model} ({manifest.base.digest[:12]}), the loaded base is "
                f"{self.base.ref.model} ({self.base.ref.digest[:12]}); load the base that the campaign names"
            )
        config = stored_config(stored.config, name)
        check_sites_fit(self.base.model, config, stored.tensors, name)
        if self.peft is None:
            self.peft = get_peft_model(self.base.model, config, adapter_name=name)  # type: ignore[assignment]
            self._wrapped()
        else:
            self.peft.add_adapter(name, config)
        set_peft_model_state_dict(self.peft, dict(stored.tensors), adapter_name=name)
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

    def keep(self, names: Sequence[str]) -> None:
        """Of the stacks attached these stay on the device; the others wait in the host's memory until they fire."""
        if self.peft is not None:
            self.tuner.fire(names)
            self.tuner.park(name for name in self.names if name not in names)

    def _wrapped(self) -> None:
        log.info("wrapped %d projections of %s", len(self.tuner.sites), self.base.ref.model)
        if self._cache_dequantized:
            self.tuner.cache_weights()


def stored_config(written: Mapping[str, Any], name: str) -> StackConfig:
    """A stack's configuration as it was written. Raises StackError for settings that this version does not know."""
    types = {f.name: type(f.default) for f in dataclasses.fields(StackConfig)}
    wrong = [
        key
        for key, value in written.items()
        if key not in types
        or (types[key] in (int, float) and not (isinstance(value, int | types[key]) and not isinstance(value, bool)))
    ]
    if wrong or written.get("peft_type") != METHOD:
        raise StackError(
            f"stack {name}: its adapter_config.json is of {written.get('peft_type')!r}"
            + (f" and has {wrong[0]} = {written[wrong[0]]!r}" if wrong else "")
            + "; it was written by another version of bs_cluster: use that version"
        )
    try:
        return StackConfig(**written)
    except (TypeError, ValueError) as error:
        raise StackError(f"stack {name}: its adapter_config.json says what cannot be ({error})") from error


def check_sites_fit(model: nn.Module, config: StackConfig, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    """Raises StackError unless a stored stack has exactly the sites that ``config`` wraps in ``model``, each with its
    widths and the ranks that ``config`` says."""
    wanted: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if StackModel._check_target_module_exists(config, path):
            wide, high = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
            wanted |= {
                tensor_key(path, "stack_A"): (config.experts, config.rank, wide),
                tensor_key(path, "stack_B"): (config.experts, config.rank, high),
                tensor_key(path, "stack_router"): (config.experts, wide),
                tensor_key(path, "stack_noise"): (config.experts, wide),
            }
    if differ := sorted(set(wanted) ^ set(tensors)):
        raise StackError(
            f"stack {name}: {len(differ)} tensors are only in the base or only in the file, such as {differ[0]}; "
            "load it on the base and with the target modules that it was trained with"
        )
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise StackError(f"stack {name}: {key} has shape {tuple(tensors[key].shape)}, this base wants {shape}")


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
