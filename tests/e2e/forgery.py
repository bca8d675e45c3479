"""Somebody who can write to a store and knows the code: a further bundle whose digests are all valid, and its
certificate made from what was forged as the campaign makes it."""

from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster.campaign.certify import certificate_of
from bs_cluster.campaign.promote import bundle_losses, judge
from bs_cluster.campaign.recompute import certificate_in
from bs_cluster.certificate import CERTIFICATE, Certificate
from bs_cluster.promotion import write_losses
from bs_cluster.store import Store
from bs_cluster.store.bundle_config import bundle_config


def copy_of(store: Store, folder: Path) -> Store:
    for part in ("blobs", "refs", "history"):
        shutil.copytree(Path(store.uri) / store.campaign / part, folder / store.campaign / part)
    return Store(str(folder), store.campaign)


def forge(
    store: Store, files: Mapping[str, bytes], edit: Callable[[Certificate], Certificate] = lambda said: said
) -> int:
    """Commits the first bundle once more, with ``files`` in the place of its own and its certificate as ``edit`` leaves
    it; the new bundle's number."""
    first, number = store.bundles()[0][2], len(store.bundles()) + 1
    new = {name: store.put_bytes(name, data) for name, data in files.items()}
    kept = tuple(new.get(entry.name, entry) for entry in first.files if entry.name != CERTIFICATE)
    forged = dataclasses.replace(first, number=number, files=kept)
    config, losses = bundle_config(store, forged), bundle_losses(store, forged)
    served, _ = judge(store, number, forged.stacks, losses, config.promotion)
    said = certificate_of(store, forged, config, losses, certificate_in(store, first).isolated, served)
    entry = store.put_bytes(CERTIFICATE, edit(said).to_json())
    return store.commit_bundle(dataclasses.replace(forged, files=(*kept, entry)))


def better_losses(store: Store, owner: str, share: float) -> dict[str, bytes]:
    """The first bundle's outcomes and losses, less by a share on every row of ``owner``: the two still agree."""
    first = store.bundles()[0][2]

    def less(nll: float | None) -> float | None:
        return None if nll is None else float(np.float32(nll * (1 - share)))

    outcomes = pq.read_table(io.BytesIO(store.get_bytes(first.file("outcomes.parquet").sha256)))
    lines = outcomes.to_pylist()
    for line in lines:
        line["nll"] = less(line["nll"]) if line["domain"] == owner else line["nll"]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines, schema=outcomes.schema), sink)
    held = bundle_losses(store, first)
    nll = {
        mode: tuple(less(value) if whose == owner else value for whose, value in zip(held.owners, values, strict=True))
        for mode, values in held.nll.items()
    }
    losses = write_losses(dataclasses.replace(held, nll=nll))
    return {"outcomes.parquet": sink.getvalue(), "losses.parquet": losses}
