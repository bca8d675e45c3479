"""The store decides: content-addressed, write-once, verified bytes, and the refs whose appearance is a commit."""

from bs_cluster.store.adapter_check import check_adapter
from bs_cluster.store.collect import Collected
from bs_cluster.store.hashing import stage_entries
from bs_cluster.store.repair import Repaired
from bs_cluster.store.stack_load import StoredStack
from bs_cluster.store.store import Store
from bs_cluster.store.sweep_area import SweepArea
from bs_cluster.store.verify import Problem, Verified

__all__ = [
    "Collected",
    "Problem",
    "Repaired",
    "Store",
    "StoredStack",
    "SweepArea",
    "Verified",
    "check_adapter",
    "stage_entries",
]
