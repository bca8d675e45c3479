"""Stacks that the published scripts wrote (``torch.save`` of a dict of tensors), as an adapter of this project.

A file holds one stack. Its keys are ``<site>.active_stack.experts.<e>.A.weight`` (R, I) and ``.B.weight`` (O, R), with
``<site>.active_stack.router.weight`` and ``.noise_linear.weight`` (E, I); a site is a module's path in the base. The
delta is the same function as ours; the null space is not in the file, and was not applied when they answered.

Shapes: E experts, R rank, I in_features, O out_features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from bs_cluster.adapter_format import parse_key, tensor_key
from bs_cluster.errors import DataError
from bs_cluster.stacks.adapter_files import write_adapter
from bs_cluster.stacks.config import EXPORTED, StackConfig
from bs_cluster.stacks.whole_domain import joined_config, joined_tensors

KEY = re.compile(r"(?P<site>.+)\.active_stack\.(?P<part>experts\.(?P<expert>\d+)\.[AB]|router|noise_linear)\.weight")
NOT_TEXT = ("vision_tower", "multi_modal_projector")  # wrapped by the scripts too, and never fed
Parts = dict[str, torch.Tensor]  # of a site, by ``part`` of ``KEY``; or of all, by our keys


class Published(NamedTuple):
    """What a file holds: tensors by our keys, experts and rank, and which of ``NOT_TEXT`` had stacks too."""

    tensors: dict[str, torch.Tensor]
    experts: int
    rank: int
    left_out: frozenset[str]


def read_published(file: Path) -> Published:
    """Nothing in the file is executed. Raises DataError for what is no such file, not whole, or not finite."""
    sites: dict[str, Parts] = {}
    left_out: set[str] = set()
    for key, tensor in _load(file).items():
        found = KEY.fullmatch(key) if isinstance(key, str) else None
        if found is None or not isinstance(tensor, torch.Tensor):
            raise DataError(
                f"{file}: {key!r} is no tensor of a published stack; '<site>.active_stack.router.weight' is"
            )
        unfed = set(found["site"].split(".")).intersection(NOT_TEXT)
        left_out |= unfed
        if not unfed:
            sites.setdefault(found["site"], {})[found["part"]] = tensor
    if not sites:
        raise DataError(f"{file} holds no stack on any projection of the language model")
    tensors: dict[str, torch.Tensor] = {}
    kinds = set()
    for site, parts in sites.items():
        whole = _whole(file, site, parts)
        kinds.add((whole["stack_A"].shape[0], whole["stack_A"].shape[1]))
        tensors |= {tensor_key(site, part): tensor for part, tensor in whole.items()}
    if len(kinds) > 1:
        raise DataError(f"{file}: sites differ in their (experts, rank): {sorted(kinds)}")
    experts, rank = kinds.pop()
    return Published(tensors, experts, rank, frozenset(left_out))


def _load(file: Path) -> dict:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler fail in whatever way
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file} cannot be read as a file of tensors alone: {told}") from None
    if not isinstance(state, dict):
        raise DataError(f"{file} holds a {type(state).__name__}, not a dict of tensors by name")
    return state


def _whole(file: Path, site: str, parts: Parts) -> dict[str, torch.Tensor]:
    """A site's tensors in our layout; B is the transpose of theirs."""
    experts = len([part for part in parts if part.endswith(".A")])
    wanted = {f"experts.{e}.{m}" for e in range(experts) for m in "AB"} | {"router", "noise_linear"}
    if not experts or parts.keys() != wanted:
        lacking, odd = sorted(wanted - parts.keys()), sorted(parts.keys() - wanted)
        raise DataError(f"{file}: {site} is not whole: it lacks {lacking or 'nothing'}, and {odd or 'nothing'} is odd")
    if odd := {part: tuple(tensor.shape) for part, tensor in parts.items() if tensor.ndim != 2}:
        raise DataError(f"{file}: tensors of {site} that are no matrices: {odd}")
    try:
        whole = {
            "stack_A": torch.stack([parts[f"experts.{e}.A"] for e in range(experts)]),
            "stack_B": torch.stack([parts[f"experts.{e}.B"].T for e in range(experts)]),
            "stack_router": parts["router"],
            "stack_noise": parts["noise_linear"],
        }
    except RuntimeError as error:
        raise DataError(f"{file}: experts of {site} differ in their shapes: {error}") from None
    _, rank, inputs = whole["stack_A"].shape
    gates = (experts, inputs)
    if whole["stack_B"].shape[1] != rank or any(whole[part].shape != gates for part in ("stack_router", "stack_noise")):
        raise DataError(f"{file}: shapes at {site} do not go together: {_shapes(whole)}")
    for part, tensor in whole.items():
        if not tensor.isfinite().all():
            raise DataError(f"{file}: {part} of {site} holds NaN or Inf; the scripts froze a broken stack")
    return {part: tensor.contiguous() for part, tensor in whole.items()}


def _shapes(tensors: Parts) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def adopt(files: Sequence[Path], folder: Path, domain: str, base: str, alpha: float, top_k: int) -> Published:
    """Writes the rounds of a domain, in this order, as one adapter for ``base`` into ``folder``; what the first one is.
    ``alpha`` and ``top_k`` are not in the files. Raises DataError."""
    read = [read_published(file) for file in files]
    first = read[0]
    for file, one in zip(files, read, strict=True):
        if one[1:] != first[1:] or _shapes(one.tensors) != _shapes(first.tensors):
            raise DataError(f"{file} is of other sites or shapes than {files[0]}: not rounds of one domain")
    if top_k > first.experts:
        raise DataError(f"top_k {top_k}: {files[0]} has {first.experts} experts")
    rounds = [
        StackConfig(
            rank=first.rank,
            experts=first.experts,
            top_k=top_k,
            alpha=alpha,
            target_modules={parse_key(key)[0].rpartition(".")[2] for key in first.tensors},
            exclude_modules=set(first.left_out) or None,
            domain=domain,
            round=number,
            base_model_name_or_path=base,
        )
        for number in range(1, len(files) + 1)
    ]
    write_adapter(folder, joined_config(rounds), joined_tensors([one.tensors for one in read]), EXPORTED)
    return first
