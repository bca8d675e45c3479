"""Outcomes that an earlier bundle's sweep measured and that would come out again: of the same rows, under combinations
of domains whose stacks are the same. A campaign that lost a domain, or got one, measures only what is new.

Shapes: N measurements.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bs_cluster import __version__
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.certify import OUTCOMES
from bs_cluster.data.encode import EncodedRow
from bs_cluster.errors import NotInStoreError
from bs_cluster.records import BundleManifest, StackRef
from bs_cluster.store import SweepArea
from bs_cluster.store.bundle_config import bundle_config
from bs_cluster.sweep.outcomes import OutcomeTable


def carry_over(campaign: Campaign, rows: Sequence[EncodedRow], area: SweepArea) -> int:
    """Writes into ``area``, where nothing has been measured yet, what the newest bundle knows of these sweep ``rows``;
    how many outcomes. One of another base, version or encoding of rows knows nothing, nor does one that was erased."""
    bundles = campaign.store.bundles()
    if area.parts() or not bundles:
        return 0
    _, _, bundle = bundles[-1]
    live = [ref for ref, _ in campaign.store.stacks()]
    try:
        then, data = bundle_config(campaign.store, bundle), campaign.store.get_bytes(bundle.file(OUTCOMES).sha256)
    except NotInStoreError:
        return 0
    now = campaign.config
    if (then.base, then.data, bundle.code_version) != (now.base, now.data, __version__):
        return 0
    bits, places = same_domains(bundle, live, campaign.domains), {row.id: place for place, row in enumerate(rows)}
    count = 0
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches():
        count += _write(batch, rows, places, bits, campaign.domains, area)
    return count


def same_domains(bundle: BundleManifest, live: Sequence[StackRef], domains: Sequence[str]) -> dict[int, int]:
    """The bit that a domain had in the bundle's masks -> its bit among ``domains``, of those with the same stacks."""

    def of(stacks: Sequence[StackRef], domain: str) -> set[StackRef]:
        return {ref for ref in stacks if ref.stack.domain == domain}

    shared = [name for name in bundle.domains if name in domains and of(bundle.stacks, name) == of(live, name)]
    return {bundle.domains.index(name): domains.index(name) for name in shared}


def translate(mask_N: np.ndarray, bits: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Masks in the new order of domains, and which of them name no other domain than those of ``bits``."""
    known = sum(1 << old for old in bits)
    translated_N = np.zeros_like(mask_N)
    for old, new in bits.items():
        translated_N |= (mask_N >> old & 1) << new
    return translated_N, mask_N & ~known == 0


def _write(
    batch: pa.RecordBatch,
    rows: Sequence[EncodedRow],
    places: Mapping[str, int],
    bits: Mapping[int, int],
    domains: Sequence[str],
    area: SweepArea,
) -> int:
    columns = {name: batch.column(name) for name in ("row_id", "domain", "mask", "nll", "tokens")}
    mask_N, counts_N = translate(columns["mask"].to_numpy(), bits)
    tokens_N = columns["tokens"].to_numpy()
    place_N = np.array([places.get(id, -1) for id in columns["row_id"].to_pylist()], dtype=np.int64)
    owners = columns["domain"].to_pylist()
    same = [
        place >= 0 and (rows[place].domain, rows[place].completion_length) == (owner, tokens)
        for place, owner, tokens in zip(place_N.tolist(), owners, tokens_N.tolist(), strict=True)
    ]
    take_N = np.flatnonzero(counts_N & np.array(same, dtype=bool))
    if not len(take_N):
        return 0
    first, last = int(place_N[take_N].min()), int(place_N[take_N].max())
    own = [rows[place] for place in range(first, last + 1)]
    table = OutcomeTable([row.id for row in own], [row.domain for row in own], domains)
    nll_N = columns["nll"].to_numpy().astype(np.float64)
    table.add(place_N[take_N] - first, mask_N[take_N], nll_N[take_N], tokens_N[take_N])
    area.write_part(first, last, table.to_arrow())
    return len(take_N)
