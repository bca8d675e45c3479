"""The tuner: wraps the projections of a base model and decides which stacks fire.

Order of use while a round trains: load every parent with ``PeftModel.load_adapter``, add the new stack with
``add_adapter``, then ``fire(parents, train=new)``. For inference ``fire(all)`` and gate weights per prompt:

    with model.base_model.gates(weights_BD, domains):
        model(input_ids=..., attention_mask=...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from bs_cluster.adapter_format import PARTS, tensor_key
from bs_cluster.basis import Basis
from bs_cluster.stacks.composition import Composition, Training
from bs_cluster.stacks.compression import MergeMoments
from bs_cluster.stacks.config import PREFIX, StackConfig, carries_stack
from bs_cluster.stacks.fixed_gates import MeanGates
from bs_cluster.stacks.layer import StackLinear
from bs_cluster.stacks.lm_loss import completion_nll
from bs_cluster.stacks.moments import Measurement, Moments, Observer, ReadEnergy, WrittenEnergy

Watching = TypeVar("Watching", bound=Observer)
SEVEN_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class StackModel(BaseTuner):
    """A base with stacks on it. State that a forward reads lives in ``composition``, shared by all sites."""

    prefix = PREFIX
    tuner_layer_cls = StackLinear
    target_module_mapping = dict.fromkeys(("gemma3", "gemma3_text", "llama", "qwen2", "mistral"), SEVEN_PROJECTIONS)

    composition: Composition

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        if not hasattr(self, "composition"):
            self.composition = Composition()
            self.sites: list[StackLinear] = []

    def forward(self, *args: Any, completion_labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """The base's own forward; with ``completion_labels`` (B, T) the loss of each labelled token instead, (N,)."""
        if completion_labels is None:
            return self.model(*args, **kwargs)
        inputs = {name: value for name, value in kwargs.items() if isinstance(value, torch.Tensor)}
        return completion_nll(self.model, completion_labels, **inputs)

    # --- PEFT's hooks ---------------------------------------------------------------------------------------

    @staticmethod
    def _check_target_module_exists(peft_config: StackConfig, key: str) -> bool:  # type: ignore[override]
        return carries_stack(key, peft_config.target_modules or (), peft_config.exclude_modules or ())

    def _check_new_adapter_config(self, config: StackConfig) -> None:  # type: ignore[override]
        super()._check_new_adapter_config(config)
        for name, other in self.peft_config.items():
            shape = (config.rank, config.experts, config.top_k, config.scale)
            if shape != (other.rank, other.experts, other.top_k, other.scale):  # type: ignore[attr-defined]
                raise ValueError(
                    f"stack {config.domain} round {config.round} has (rank, experts, top_k, scale) {shape}, "
                    f"stack {name} on the same base does not; stacks are fused and must agree"
                )

    def _create_and_replace(  # type: ignore[override]
        self, peft_config: StackConfig, adapter_name: str, target, target_name, parent, current_key, **_: Any
    ) -> None:
        if not isinstance(target, StackLinear):
            base = target.get_base_layer() if hasattr(target, "get_base_layer") else target
            if not isinstance(base, nn.Linear):
                raise ValueError(f"{current_key} is a {type(base).__name__}; stacks wrap linear projections only")
            layer = StackLinear(target, len(self.sites), self.composition, peft_config)
            self.sites.append(layer)
            self._replace_module(parent, target_name, layer, target)
            target = layer
        target.update_layer(adapter_name, peft_config.rounds, peft_config.inference_mode)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # new parameters are made on the base layer's device already

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """PEFT's way of saying which stacks are on: one learns if it is alone and not for inference."""
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        learns = None if inference_mode or len(names) != 1 or self._config(names[0]).inference_mode else names[0]
        self.fire([name for name in names if name != learns], train=learns)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *arguments: Any, **settings: Any) -> None:
        """PEFT's way of loading one beside others, which go on alone: the next forward says so if nobody decides."""
        super().inject_adapter(model, adapter_name, *arguments, **settings)
        if adapter_name not in self.active_adapters:
            self.composition.undecided += (adapter_name,)

    def delete_adapter(self, adapter_name: str) -> None:
        """Removes a stack; the others go on firing or learning as they did."""
        state = self.composition
        learns = None if state.train == adapter_name else state.train
        if learns is None:
            self.confine(None)
        # PEFT chooses a stack to turn on instead if the one that goes is on.
        self.fire([name for name in state.firing if name != adapter_name], train=learns)
        super().delete_adapter(adapter_name)
        self.fire(state.firing, train=learns)

    # --- what fires -----------------------------------------------------------------------------------------

    def fire(self, frozen: Sequence[str], train: str | None = None) -> None:
        """Turns on the stacks ``frozen`` (all others stay loaded and cost nothing) and lets ``train`` learn.

        Raises KeyError for a name not loaded, ValueError where several rounds in one adapter are to learn.
        """
        known = self.peft_config
        for name in (*frozen, *([train] if train else [])):
            if name not in known:
                raise KeyError(f"stack {name!r} is not loaded; loaded are {sorted(known)}")
        if train is not None and self._config(train).rounds > 1:
            raise ValueError(
                f"{train!r} holds {self._config(train).rounds} rounds, which are frozen; train another one"
            )
        order = sorted((name for name in known if name != train), key=lambda name: self._config(name).order)
        wanted = self.composition.parked & {*frozen, train}
        for site in self.sites:
            for name in wanted:
                site.move(name, site.device)
        self.composition.parked = (self.composition.parked & set(known)) - wanted
        for site in self.sites:
            for name in known:
                for part in PARTS:
                    getattr(site, part)[name].requires_grad_(name == train)
        on = set(frozen)
        self.composition.resident = tuple(name for name in order if name not in self.composition.parked)
        self.composition.rounds = {name: rounds for name in known if (rounds := self._config(name).rounds) > 1}
        self.composition.firing = tuple(name for name in order if name in on)
        self.composition.train = train
        self.composition.undecided = ()
        self.composition.weigh(self.composition.firing, None)
        self.active_adapter = [*self.composition.firing, *([train] if train else [])]

    def park(self, names: Iterable[str]) -> None:
        """Stacks that do not fire wait in the host's memory until ``fire`` names them. Raises KeyError for one that
        fires or learns, or is not loaded."""
        state, away = self.composition, frozenset(names)
        if wrong := sorted(away - self.peft_config.keys() | away & {*state.firing, state.train}):
            raise KeyError(f"stacks {wrong} cannot be parked: they fire, learn or are not loaded")
        new = away - state.parked
        state.parked |= away
        state.resident = tuple(name for name in state.resident if name not in away)
        for site in self.sites if new else ():
            site.park(new)

    @contextmanager
    def gates(self, weights_BD: torch.Tensor, domains: Sequence[str]) -> Iterator[None]:
        """Multiplies each domain's stacks by its gate weight, row by row; shape (B, D), columns named by ``domains``.

        A domain at zero for the whole batch is left out of the product; a domain not named is off.
        """
        state = self.composition
        column = {domain: d for d, domain in enumerate(domains)}
        if weights_BD.shape[1] != len(column):
            raise ValueError(
                f"{weights_BD.shape[1]} gate weights per row for the {len(column)} domains {list(domains)}"
            )
        on_D = (weights_BD != 0).any(0).tolist()
        names = tuple(
            name for name in state.firing if (d := column.get(self._config(name).domain)) is not None and on_D[d]
        )
        columns = [column[self._config(name).domain] for name in names for _ in range(state.rounds.get(name, 1))]
        weights_BS = weights_BD[:, columns].float()
        state.weigh(names, None if bool((weights_BS == 1).all()) else weights_BS)
        try:
            yield
        finally:
            state.weigh(state.firing, None)

    @contextmanager
    def training_step(self, step: Training) -> Iterator[None]:
        """Noise, mask and balance for one micro-batch; must span forward and backward (checkpoints recompute)."""
        self.composition.training = step
        try:
            yield
        finally:
            self.composition.training = None

    @contextmanager
    def parent_only(self) -> Iterator[None]:
        """Leaves the learning stack out for a while, without touching what asks for a gradient: an optimizer's engine
        holds on to that."""
        learns, self.composition.train = self.composition.train, None
        self.composition.weigh(self.composition.firing, None)
        try:
            yield
        finally:
            self.composition.train = learns
            self.composition.weigh(self.composition.firing, None)

    def _config(self, name: str) -> StackConfig:
        return self.peft_config[name]  # type: ignore[return-value]

    def site_names(self) -> list[str]:
        """Module path of each site in site order, ``model.layers.0.self_attn.q_proj``: keys of bases and files."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return [names[id(site)] for site in self.sites]

    def cache_weights(self) -> None:
        """Keeps every site's dequantised base weight in memory (2 bytes a parameter in bf16)."""
        for site in self.sites:
            site.cache_weight()

    # --- a stack's life -------------------------------------------------------------------------------------

    def confine(self, basis: Basis | None) -> None:
        """The learning stack may not write into the basis's output directions nor read its input directions; None
        frees it. Raises KeyError for a site that this model does not have."""
        basis = basis or Basis()
        paths = self.site_names()
        unknown = sorted((set(basis.output) | set(basis.input)) - set(paths))
        if unknown:
            raise KeyError(f"a basis for sites that this model does not have: {unknown[:3]}")
        for path, site in zip(paths, self.sites, strict=True):
            site.confine(basis.output.get(path), basis.input.get(path))

    @torch.no_grad()
    def folded(self, name: str) -> dict[str, torch.Tensor]:
        """A stack's tensors with the constraint folded into A and B, as they are stored: file keys, fp32, on the CPU.

        In fp32, because ``VᵀB = 0`` to 1e-5 does not survive bf16, whose rounding alone is 4e-3.
        """
        tensors: dict[str, torch.Tensor] = {}
        for path, site in zip(self.site_names(), self.sites, strict=True):
            a_MI, b_MO = site.effective(name)
            folded = {"stack_A": a_MI.view_as(site.stack_A[name]), "stack_B": b_MO.view_as(site.stack_B[name])}
            for part in PARTS:
                tensor = folded[part] if part in folded else getattr(site, part)[name]
                tensors[tensor_key(path, part)] = tensor.detach().float().cpu().contiguous()
        return tensors

    def freeze(self, name: str) -> dict[str, torch.Tensor]:
        """Folds the stack that learned and freezes it; returns its tensors as they are stored, which it now is."""
        tensors = self.folded(name)
        self.confine(None)
        self._config(name).inference_mode = True
        for path, site in zip(self.site_names(), self.sites, strict=True):
            for part in PARTS:
                stored = tensors[tensor_key(path, part)].to(site.device)
                getattr(site, part)[name] = nn.Parameter(stored, requires_grad=False)
            site.unpack()
        self.fire(self.composition.firing)
        return tensors

    @contextmanager
    def measuring(
        self, names: Sequence[str], *, sketch: Callable[[StackLinear], torch.Tensor] | None = None, rows: int = 0
    ) -> Iterator[Measurement]:
        """While it lasts, every forward adds to the moments of the stacks ``names``, which must fire.

        ``sketch`` gives a site's Ω (I, Q) where the inputs are wanted too, ``rows`` how many data rows are summed one
        by one (then the caller sets the measurement's ``row_index_T`` before each batch).
        """
        self._must_fire(names)
        sites = {
            site.site: Moments.empty(
                names,
                len(names) * site.experts * site.rank,
                omega_IQ=None if sketch is None else sketch(site).to(site.device),
                rows=rows,
                device=site.device,
            )
            for site in self.sites
        }
        with self._observed(Measurement(sites)) as measurement:
            yield measurement

    @contextmanager
    def measuring_writes(self, groups: Mapping[str, Sequence[str]]) -> Iterator[WrittenEnergy]:
        """While it lasts, every forward adds to the energy that each group of stacks, which must fire, writes."""
        for names in groups.values():
            self._must_fire(names)

        def written(site: int, names: Sequence[str]) -> torch.Tensor:
            return self.sites[site].written(names)

        with self._observed(WrittenEnergy(groups, written, len(self.sites), self.sites[0].device)) as energies:
            yield energies

    @contextmanager
    def measuring_reads(self, directions: Mapping[str, torch.Tensor]) -> Iterator[ReadEnergy]:
        """While it lasts, every forward in which a stack fires adds to what sites read, and to how much of that lies in
        the orthonormal ``directions`` (I, K) by site path."""
        by_site = {place: directions[path] for place, path in enumerate(self.site_names()) if path in directions}
        with self._observed(ReadEnergy(by_site, len(self.sites), self.sites[0].device)) as energies:
            yield energies

    @contextmanager
    def measuring_gates(self, names: Sequence[str]) -> Iterator[MeanGates]:
        """While it lasts, every forward adds to the mean gates of the stacks ``names``, which must fire."""
        self._must_fire(names)

        def routers(site: int, names: Sequence[str]) -> torch.Tensor:
            return torch.cat([self.sites[site].stack_router[name] for name in names])

        first = self.sites[0]
        with self._observed(
            MeanGates(names, routers, len(self.sites), first.experts, first.top_k, first.device)
        ) as gates:
            yield gates

    @contextmanager
    def measuring_merge(self, names: Sequence[str]) -> Iterator[MergeMoments]:
        """While it lasts, every forward adds to what merging the rounds ``names``, which must fire, takes."""
        self._must_fire(names)

        def reads(site: int) -> tuple[torch.Tensor, torch.Tensor]:
            entries = self.sites[site]
            return torch.cat([entries.stack_A[name].flatten(0, 1) for name in names]), entries.stack_router[names[0]]

        first = self.sites[0]
        rows = len(names) * first.experts * first.rank
        shape = (len(self.sites), rows, first.experts, first.top_k, first.scale, first.device)
        with self._observed(MergeMoments(names, reads, *shape)) as moments:
            yield moments

    @contextmanager
    def _observed(self, observer: Watching) -> Iterator[Watching]:
        if several := [name for name in self.composition.firing if name in self.composition.rounds]:
            raise ValueError(
                f"{several} hold several rounds in one adapter; what is measured is measured round by round"
            )
        self.composition.observer = observer
        try:
            yield observer
        finally:
            self.composition.observer = None

    def _must_fire(self, names: Sequence[str]) -> None:
        if missing := sorted(set(names) - set(self.composition.firing)):
            raise KeyError(f"stacks {missing} are to be measured but do not fire; fire them first")
