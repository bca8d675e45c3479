"""What a computation holds in memory and multiplies, found by running it on tensors that have shapes and no data.

On PyTorch's meta device every operation of the real code runs and allocates nothing. Its results are counted for as
long as they live, autograd's own included: so the peak is that of the very code which trains; no formula repeats it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class LiveBytes(TorchDispatchMode):
    """A context. ``peak`` is the most bytes that results of its operations held at once, ``flops`` what products took
    (two a multiply-add)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.flops = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            key = storage._cdata
            if key not in given and key not in self._alive:
                self._alive.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.now)
        self.flops += _flops(func, args, kwargs, result)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


class _Fused(TorchFunctionMode):
    """A context in which attention is one kernel that keeps no T×T scores, as on a CPU and a GPU; the meta device alone
    would take it apart. A mask of booleans becomes one of numbers, which such a kernel wants and keeps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _attend(*args, **(kwargs or {}))


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), -torch.inf)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _fused_attention(*args: Any, **kwargs: Any) -> Any:
    with _Fused():
        return sdpa_attention_forward(*args, **kwargs)


FUSED_ATTENTION = "fused_on_meta"  # for a model's attn_implementation
AttentionInterface.register(FUSED_ATTENTION, _fused_attention)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """PyTorch's own count; of a product with a weight that stays packed, which it does not know, the same."""
    packet = func._overloadpacket
    name = packet.__name__
    if name == "gemm_4bit":
        return 2 * result.numel() * args[0].shape[-1]
    if name.endswith("_"):  # an in-place form counts as the other
        packet = getattr(torch.ops.aten, name.rstrip("_"), packet)
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def held_bytes(*trees: Any) -> int:
    """Bytes of all tensors in ``trees``, each storage once."""
    return sum({storage._cdata: storage.nbytes() for storage in _storages(trees)}.values())
