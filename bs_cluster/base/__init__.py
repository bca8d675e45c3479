"""The frozen base: found or built, loaded in NF4, differentiated through, never changed."""

from bs_cluster.base.hidden import pool_states, router_states
from bs_cluster.base.load import LoadedBase, load_base, load_tokenizer, tokenizer_if_here
from bs_cluster.base.prepare import prepare_base

__all__ = [
    "LoadedBase",
    "load_base",
    "load_tokenizer",
    "pool_states",
    "prepare_base",
    "router_states",
    "tokenizer_if_here",
]
