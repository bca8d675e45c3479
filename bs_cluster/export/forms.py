"""Writes the files of each form: stacks as they are, a plain LoRA, merged weights.

Shapes: P sites, E experts, M rank rows, I in_features, O out_features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from bs_cluster.adapter_format import tensor_key
from bs_cluster.base.load import LoadedBase, load_base
from bs_cluster.config.schema import BaseSection
from bs_cluster.export.record import LORA, MERGED, STACK
from bs_cluster.export.source import BaseName, Source
from bs_cluster.inference.stacked import StackedBase, stored_config
from bs_cluster.stacks.adapter_files import write_adapter, write_weights
from bs_cluster.stacks.config import EXPORTED
from bs_cluster.stacks.fixed_gates import lora_factors, recompressed
from bs_cluster.stacks.whole_domain import joined_config, joined_tensors

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by site: A (M, I) and B (O, M), fp32


def write_stack(folder: Path, source: Source, model: torch.nn.Module, base: BaseName) -> None:
    """All rounds of the domain as one adapter of this project's method, for ``model``."""
    stored = [source.store.load_stack(manifest) for manifest in source.manifests]
    rounds = [stored_config(s.config, m.stack.name) for s, m in zip(stored, source.manifests, strict=True)]
    config = joined_config(rounds)
    # Names that this model has: PEFT warns of others whenever the adapter is loaded.
    there = {part for path, _ in model.named_modules() for part in path.split(".")} & set(config.exclude_modules or ())
    config = dataclasses.replace(
        config, exclude_modules=there or None, base_model_name_or_path=base.hub, revision=base.revision
    )
    write_adapter(folder, config, joined_tensors([s.tensors for s in stored]), EXPORTED)


def fixed_factors(source: Source, sites: Sequence[str], gates_PE: Mapping[str, torch.Tensor]) -> Factors:
    """The wanted stacks side by side under fixed gates: ``gates_PE`` by stack, times its domain's gate weight; at the
    wanted rank, if one is."""
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {site: [] for site in sites}
    for manifest in source.manifests:
        stored = source.store.load_stack(manifest)
        scale = stored_config(stored.config, manifest.stack.name).scale * source.wanted.gates[manifest.stack.domain]
        for site, gates_E in zip(sites, gates_PE[manifest.stack.name], strict=True):
            a_ERI, b_ERO = (stored.tensors[tensor_key(site, part)] for part in ("stack_A", "stack_B"))
            parts[site].append(lora_factors(a_ERI, b_ERO, gates_E.cpu(), scale))
    whole = {site: (torch.cat([a for a, _ in of]), torch.cat([b for _, b in of], dim=1)) for site, of in parts.items()}
    if source.wanted.rank is None:
        return whole
    return {site: recompressed(*factors, source.wanted.rank) for site, factors in whole.items()}


def write_lora(folder: Path, factors: Factors, model: torch.nn.Module, base: BaseName) -> int:
    """A LoRA that PEFT, and what reads PEFT's folders, takes without this project; returns its rank.

    ``lora_alpha`` is the rank, so that nothing scales what is in the file. Targets are projections by name where those
    of ``model`` are just the sites, else by path.
    """
    rank = next(iter(factors.values()))[0].shape[0]
    names = {site.rpartition(".")[2] for site in factors}
    alike = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(names if set(alike) == set(factors) else factors),
        bias="none",
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=base.hub,
        revision=base.revision,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    tensors = {}
    for site, (a_MI, b_OM) in factors.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = a_MI.contiguous()
        tensors[f"base_model.model.{site}.lora_B.weight"] = b_OM.contiguous()
    write_weights(folder, tensors)
    return rank


@torch.no_grad()
def write_merged(folder: Path, factors: Factors, stacked: StackedBase) -> None:
    """The base in bf16, dequantised, with the factors' products added, and its tokenizer. Uses up ``stacked``: its
    stacks are taken off and its weights change."""
    model: PreTrainedModel = stacked.base.model
    for site, layer in zip(stacked.tuner.site_names(), stacked.tuner.sites, strict=True):
        model.set_submodule(site, layer.base_layer)
    del model.peft_config
    if getattr(model, "hf_quantizer", None) is not None:
        model.dequantize(dtype=torch.bfloat16)
    model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    for site, (a_MI, b_OM) in factors.items():
        weight_OI = model.get_submodule(site).weight
        weight_OI.copy_(weight_OI.float().addmm_(b_OM.to(weight_OI.device), a_MI.to(weight_OI.device)))  # type: ignore[operator]
    model.save_pretrained(folder)
    stacked.base.tokenizer.save_pretrained(folder)


def load_again(folder: Path, form: str, base: BaseSection, device: str) -> StackedBase:
    """What was written, as a user loads it: an adapter by ``PeftModel.from_pretrained`` on the campaign's base, merged
    weights as they are."""
    if form == MERGED:
        plain = BaseSection(model=str(folder), quantization="none", compute_dtype="bfloat16", attention=base.attention)
        return StackedBase(load_base(plain, device=device), cache_dequantized=False)
    loaded: LoadedBase = load_base(base, device=device)
    assert form in (STACK, LORA)
    PeftModel.from_pretrained(loaded.model, str(folder)).eval()  # changes the model in place
    return StackedBase(loaded, cache_dequantized=False)
