"""Keys and values of a running batch: a slot a row, so that one joins or leaves without moving the others'.

A row's token t stands at place t of its slot. What lies behind a row's own tokens is padding or another answer's
leavings; the mask hides it until the row's own next tokens take its place.

Shapes: N slots, L places of a slot, B rows of a batch, T tokens of each, H heads, D size of a head.
"""

from __future__ import annotations

from typing import Any

import torch


class KeyValues:
    """What a decoder of transformers takes for ``past_key_values``: it calls ``update`` in every layer."""

    def __init__(self, slots: int, length: int):
        self.slots, self.length = slots, length
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def at(self, first: int, position_BT: torch.Tensor) -> None:
        """The next forward is of the slots from ``first`` on, its tokens at these places of each."""
        self._rows = slice(first, first + position_BT.shape[0])
        self._row_B1 = torch.arange(self._rows.start, self._rows.stop, device=position_BT.device)[:, None]
        self._position_BT, self._reach = position_BT, int(position_BT.max()) + 1
        assert self._rows.stop <= self.slots
        assert self._reach <= self.length

    def update(
        self, key_BHTD: torch.Tensor, value_BHTD: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps a layer's new keys and values and gives those of the same rows up to the longest of them."""
        if layer not in self._layers:
            heads, size = key_BHTD.shape[1], key_BHTD.shape[3]
            empty = key_BHTD.new_zeros((2, self.slots, self.length, heads, size))
            self._layers[layer] = (empty[0], empty[1])
        keys_NLHD, values_NLHD = self._layers[layer]
        keys_NLHD[self._row_B1, self._position_BT] = key_BHTD.transpose(1, 2)
        values_NLHD[self._row_B1, self._position_BT] = value_BHTD.transpose(1, 2)
        held = (self._rows, slice(self._reach))
        return keys_NLHD[held].transpose(1, 2), values_NLHD[held].transpose(1, 2)

    def move(self, source: int, target: int, length: int) -> None:
        """The first ``length`` places of slot ``source`` to slot ``target``."""
        for keys_NLHD, values_NLHD in self._layers.values():
            keys_NLHD[target, :length] = keys_NLHD[source, :length]
            values_NLHD[target, :length] = values_NLHD[source, :length]

    def masks(self, config: Any) -> torch.Tensor | dict[str, torch.Tensor]:
        """What each token of the next forward sees, (B, 1, T, L) bool: its own row up to itself, in sliding layers no
        further back than their window. A decoder whose layers differ takes one for each kind."""
        place_L = torch.arange(self._reach, device=self._position_BT.device)
        at_BT1 = self._position_BT[..., None]
        seen = (place_L <= at_BT1)[:, None]
        window = getattr(config, "sliding_window", None)
        near = seen if window is None else seen & (place_L > at_BT1 - window)[:, None]
        if getattr(config, "layer_types", None) is None:
            return near
        return {"full_attention": seen, "sliding_attention": near}
