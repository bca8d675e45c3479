"""A trained meta-router on disk: ``router.safetensors`` (arrays) and ``router.json`` (the rest). Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.failpoints import failpoint
from bs_cluster.records import Record
from bs_cluster.router.anchor import Anchor
from bs_cluster.router.familiar import Kinds
from bs_cluster.router.fit import Served
from bs_cluster.router.learned import Gates
from bs_cluster.router.net import MetaRouter
from bs_cluster.router.routers import AnchoredRouter, NetworkRouter
from bs_cluster.sweep.combinations import full_mask

WEIGHTS_FILE, CARD_FILE = "router.safetensors", "router.json"
ANCHOR_ARRAYS = tuple(field.name for field in fields(Anchor))
KIND_ARRAYS = tuple(field.name for field in fields(Kinds))


@dataclass(frozen=True)
class RouterCard(Record):
    """All that turns a prompt into a combination of domains, in training and in serving alike.

    ``kind`` is ``anchored`` or ``network``. ``domains`` is the order of the gates and of the bits of ``masks``, the
    combinations to choose from; ``input_size`` the base's hidden size. States are ``mid_weight · h_mid +
    (1 − mid_weight) · h_last`` of the base with digest ``base`` over a prompt cut at ``max_prompt_length`` tokens.
    ``hidden`` is the network's width, 0 in the other kind; ``everywhere`` as of ``Gates``, false in the other kind.
    """

    kind: str
    domains: tuple[str, ...]
    masks: tuple[int, ...]
    input_size: int
    mid_weight: float
    max_prompt_length: int
    base: str
    hidden: int
    everywhere: bool

    @property
    def pooled(self) -> bool:
        """Whether the router reads pooled states rather than every token's."""
        return self.kind == "anchored"


@dataclass(frozen=True)
class Reading:
    """How a bundle's prompts become the states that its router reads: what a card says of the base."""

    domains: tuple[str, ...]
    input_size: int
    mid_weight: float
    max_prompt_length: int
    base: str


def save_router(folder: Path, served: Served, reading: Reading) -> RouterCard:
    """Write both files into an existing folder."""
    router = served.router
    if isinstance(router, NetworkRouter):
        numbers = {"kind": "network", "hidden": router.network.hidden, "everywhere": False}
        tensors = dict(router.network.state_dict())
    else:
        assert isinstance(router, AnchoredRouter)
        anchor = router.anchor
        learned = router.learned
        numbers = {"kind": "anchored", "hidden": 0, "everywhere": learned is not None and learned.everywhere}
        tensors = {name: torch.from_numpy(getattr(anchor, name)) for name in ANCHOR_ARRAYS}
        tensors |= {name: torch.from_numpy(getattr(router.kinds, name)) for name in KIND_ARRAYS}
        if learned is not None:
            tensors["weight_PD"] = torch.from_numpy(learned.weight_PD)
    card = RouterCard(masks=served.masks, **reading.__dict__, **numbers)  # type: ignore[arg-type]
    failpoint("router.save")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CARD_FILE).write_text(json.dumps(card.to_dict(), indent=2, sort_keys=True) + "\n")
    return card


def load_router(folder: Path, domains: Sequence[str], input_size: int, base: str) -> tuple[Served, RouterCard]:
    """The saved router with its card.

    ``domains`` (in order), ``input_size`` and the ``base`` digest are those of the bundle that will use it. Raises
    IntegrityError when the router was trained for others, its tensors do not fit or are not finite, or it would serve a
    combination that the bundle does not have; NotInStoreError when a file is not there.
    """
    for name in (WEIGHTS_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise NotInStoreError(f"{folder} has no {name}; the bundle is incomplete, fetch it again")
    card = RouterCard.from_dict(json.loads((folder / CARD_FILE).read_text()))
    wanted = {"domains": tuple(domains), "input_size": input_size, "base": base}
    for name, value in wanted.items():
        if getattr(card, name) != value:
            raise IntegrityError(
                f"the meta-router in {folder} was trained for {name} {getattr(card, name)!r}, the bundle has "
                f"{value!r}; train one on this bundle"
            )
    if not card.masks or not all(0 <= mask <= full_mask(len(domains)) for mask in card.masks):
        raise IntegrityError(f"the meta-router in {folder} serves {card.masks}, no combinations of {list(domains)}")
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        router = _network(card, tensors) if card.kind == "network" else _anchored(card, tensors)
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise IntegrityError(f"{folder / WEIGHTS_FILE} does not fit its {CARD_FILE}: {error}") from error
    return Served(router, card.masks, None), card


def _network(card: RouterCard, tensors: dict[str, Tensor]) -> NetworkRouter:
    network = MetaRouter(card.input_size, len(card.domains), card.hidden, dropout=0.0)
    network.load_state_dict(tensors)
    return NetworkRouter(network.eval())


def _anchored(card: RouterCard, tensors: dict[str, Tensor]) -> AnchoredRouter:
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    if strange := set(arrays) - {*ANCHOR_ARRAYS, *KIND_ARRAYS, "weight_PD"}:
        raise ValueError(f"it holds {sorted(strange)}, which no anchored router has")
    features, count = 2 * card.input_size, len(card.domains)
    directions = arrays["whiten_FK"].shape[1]
    shapes = {
        "centre_F": (features,),
        "scale_F": (features,),
        "whiten_FK": (features, directions),
        "bank_NK": (len(arrays["owner_N"]), directions),
        "owner_N": (len(arrays["owner_N"]),),
        "limit_D": (count,),
        "spread_D": (count,),
        "home_D": (count,),
        "mixed_MK": (len(arrays["kind_M"]), directions),
        "kind_M": (len(arrays["kind_M"]),),
        "kind_limit_J": (len(arrays["kind_limit_J"]),),
        "kind_home_J": (len(arrays["kind_limit_J"]),),
        "weight_PD": (count + directions + 1, count),
    }
    for name, array in arrays.items():
        if array.shape != shapes[name] or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.shape}, wanted finite numbers of shape {shapes[name]}")
    if set(arrays["owner_N"].tolist()) != set(range(count)):
        raise ValueError(f"owner_N names {sorted(set(arrays['owner_N'].tolist()))}, wanted each of {count} domains")
    if set(arrays["kind_M"].tolist()) != set(range(len(arrays["kind_limit_J"]))):
        raise ValueError(
            f"kind_M names {sorted(set(arrays['kind_M'].tolist()))}, which are not the kinds that have limits"
        )
    anchor = Anchor(**{name: arrays[name] for name in ANCHOR_ARRAYS})
    weight_PD = arrays.get("weight_PD")
    learned = None if weight_PD is None else Gates(weight_PD, card.everywhere)
    return AnchoredRouter(anchor, Kinds(**{name: arrays[name] for name in KIND_ARRAYS}), learned)
