"""A trained meta-router on disk: ``router.safetensors`` (weights, statistics) and ``router.json`` (the rest)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bs_cluster.errors import IntegrityError, NotInStoreError
from bs_cluster.records import Record
from bs_cluster.router.net import MetaRouter

WEIGHTS_FILE, CARD_FILE = "router.safetensors", "router.json"


@dataclass(frozen=True)
class RouterCard(Record):
    """All that turns router weights into gate weights, in training and in serving alike.

    ``domains`` is the order of the logits; ``input_size`` the base's hidden size, ``hidden`` the router's width.
    States are ``mid_weight · h_mid + (1 − mid_weight) · h_last`` of the base with digest ``base`` over a prompt cut
    at ``max_prompt_length`` tokens; ``floors`` and ``threshold`` are those of ``gates.serve_weights``.
    """

    domains: tuple[str, ...]
    input_size: int
    hidden: int
    floors: dict[str, float]
    threshold: float
    mid_weight: float
    max_prompt_length: int
    base: str


def save_router(folder: Path, router: MetaRouter, card: RouterCard) -> None:
    """Write both files into an existing folder. Raises IntegrityError when the card is not of this router."""
    described = (len(card.domains), card.input_size, card.hidden)
    actual = (router.domain_count, router.input_size, router.hidden)
    if described != actual:
        raise IntegrityError(f"the card says (domains, input, hidden) = {described}, the router has {actual}")
    save_file({name: tensor.contiguous() for name, tensor in router.state_dict().items()}, folder / WEIGHTS_FILE)
    (folder / CARD_FILE).write_text(json.dumps(card.to_dict(), indent=2, sort_keys=True) + "\n")


def load_router(folder: Path, domains: Sequence[str], input_size: int, base: str) -> tuple[MetaRouter, RouterCard]:
    """The saved router in eval mode, with its card.

    ``domains`` (in order), ``input_size`` and the ``base`` digest are those of the bundle that will use it. Raises
    IntegrityError when the router was trained for others or its tensors do not fit, NotInStoreError when a file is
    not there.
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
    router = MetaRouter(card.input_size, len(card.domains), card.hidden, dropout=0.0)
    try:
        router.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{folder / WEIGHTS_FILE} does not fit its {CARD_FILE}: {error}") from error
    return router.eval(), card
