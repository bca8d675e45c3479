"""The frozen base in parts, one a rank: what ZeRO 3 adds to ZeRO 2 where nearly all parameters are frozen.

    a layer's projections   q  k  v  o  gate  up  down      one row of bytes, packed weights as they are
    on rank r               the r-th part of it             all there is between uses
    while a layer computes  the whole row                   in one of two buffers; the next layer's fills the other

Nothing is reduced and nothing steps, so a part never changes; a layer is gathered for its forward and once more for its
backward, recomputed or not, and what is computed with has the very bits of a whole base. DeepSpeed's stage 3 gathers
by hooks on modules' forward and backward, and here the backward of a site, one function in closed form, asks for the
weight itself. What carries no stack stays whole on every rank: embeddings, norms, constants of quantisation, and a
projection that stacks leave out, whose own backward would find another layer's weight in the buffer.

Gathering is collective: all ranks must run as many forwards and backwards. Where they do not, in scoring and answering,
``uneven`` lets those that are through go on handing out their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bs_cluster.decoder import decoder_and_head
from bs_cluster.stacks.config import carries_stack
from bs_cluster.watchdog import pulse

ALIGNED = 16  # bytes: a view of any dtype may begin there
BUFFERS = 2


class ShardedBase:
    """Those projections of ``model`` that carry stacks (``projections``) in parts over the default process group, from
    now on.

    Whoever computes with a projection's weight and not through its module asks ``gathered`` first.
    """

    def __init__(self, model: nn.Module, target_modules: Collection[str], exclude_modules: Collection[str]):
        self.ranks, rank = dist.get_world_size(), dist.get_rank()
        self._layers = projections(model, target_modules, exclude_modules)
        sizes = row_bytes(self._layers, self.ranks)
        device = self._layers[0][0].weight.device
        self._buffers = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(BUFFERS)]
        self.parts: list[torch.Tensor] = []
        self._views: list[list[tuple[nn.Linear, int, int, torch.dtype, torch.Size]]] = []
        for number, (layer, size) in enumerate(zip(self._layers, sizes, strict=True)):
            row, start, views = self._buffers[0][:size], 0, []
            for module in layer:
                weight = module.weight.data
                held = weight.reshape(-1).view(torch.uint8)
                row[start : start + held.numel()] = held
                views.append((module, start, held.numel(), weight.dtype, weight.shape))
                start += _aligned(held.numel())
                module.weight.data = weight.new_empty(0)
                module.register_forward_pre_hook(partial(_gather_first, number, self._use))
                setattr(module, _ASK, partial(self._use, number))
            part = size // self.ranks
            self.parts.append(row[rank * part : (rank + 1) * part].clone())
            self._views.append(views)
        decoder_and_head(model)[0].register_forward_pre_hook(self._forward_begins)
        self._current: int | None = None  # what the first buffer holds
        self._coming: tuple[int, dist.Work] | None = None  # what the second will
        self._uneven = False

    @contextmanager
    def uneven(self) -> Iterator[None]:
        """Within, ranks may run different numbers of whole forwards, without a gradient. Every rank enters and leaves
        it; one that is through waits for the others there."""
        self._uneven = True
        try:
            yield
        finally:
            self._uneven = False
        while self._anyone_works(False):
            pulse()
            for layer in range(len(self._layers)):
                self._use(layer)

    def _forward_begins(self, *_: object) -> None:
        if self._uneven:
            self._anyone_works(True)

    def _anyone_works(self, works: bool) -> bool:
        working = torch.tensor(float(works), device=self._buffers[0].device)
        dist.all_reduce(working)
        return bool(working)

    @torch.no_grad()
    def _use(self, number: int) -> None:
        """The weights of this layer are there, until another one's are used."""
        if number == self._current:
            return
        before = self._current
        if self._coming is not None and self._coming[0] != number:
            self._coming[1].wait()
            self._coming = None
        if self._coming is None:
            self._coming = number, self._start(number)
        self._coming[1].wait()
        self._coming = None
        self._buffers.reverse()
        if before is not None:
            for module, *_ in self._views[before]:
                module.weight.data = module.weight.data.new_empty(0)
        for module, start, count, dtype, shape in self._views[number]:
            module.weight.data = self._buffers[0][start : start + count].view(dtype).view(shape)
        self._current = number
        # Backward goes down, all else up; after the last layer comes its own backward or, from the first, another pass.
        following = number + (1 if before is None or number == 0 or number > before else -1)
        if 0 <= following < len(self._layers) and following != before:
            self._coming = following, self._start(following)

    def _start(self, number: int) -> dist.Work:
        """Whatever reads the second buffer was enqueued before, on this stream, which the gathering waits for."""
        part = self.parts[number]
        into = self._buffers[1][: part.numel() * self.ranks]
        work = dist.all_gather_into_tensor(into, part, async_op=True)
        assert work is not None
        return work


_ASK = "ask_for_weight"


def gathered(module: nn.Module) -> nn.Module:
    """The projection, its weight whole; of a base that is whole anyway, as it is."""
    ask: Callable[[], None] | None = getattr(module, _ASK, None)
    if ask is not None:
        ask()
    return module


def projections(
    model: nn.Module, target_modules: Collection[str], exclude_modules: Collection[str] = ()
) -> list[list[nn.Linear]]:
    """Those of each of the decoder's layers that carry stacks, in order; a layer without any is left out. ``model`` is
    not wrapped yet."""
    paths = {id(module): path for path, module in model.named_modules()}
    layers: Any = decoder_and_head(model)[0].layers
    found = [
        [
            one
            for one in layer.modules()
            if isinstance(one, nn.Linear) and carries_stack(paths[id(one)], target_modules, exclude_modules)
        ]
        for layer in layers
    ]
    return [layer for layer in found if layer]


def row_bytes(layers: Sequence[Sequence[nn.Linear]], ranks: int) -> list[int]:
    """Bytes of each layer's row, padded so that all parts are alike."""
    step = ALIGNED * ranks
    return [-(-sum(_aligned(_bytes(one.weight)) for one in layer) // step) * step for layer in layers]


def _bytes(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()


def _aligned(count: int) -> int:
    return -(-count // ALIGNED) * ALIGNED


def _gather_first(number: int, use: Callable[[int], None], *_: object) -> None:
    use(number)
