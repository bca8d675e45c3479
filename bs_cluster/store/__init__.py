"""The store decides: content-addressed, write-once, verified bytes, and the refs whose appearance is a commit."""

from bs_cluster.store.adapter_check import check_adapter
from bs_cluster.store.hashing import stage_entries
from bs_cluster.store.store import Store
from bs_cluster.store.sweep_area import SweepArea

__all__ = ["Store", "SweepArea", "check_adapter", "stage_entries"]
