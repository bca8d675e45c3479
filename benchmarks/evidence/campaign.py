"""A finished campaign as its rivals need it: the rows it learned from, in the order it took them, and what it recorded.

The store is read, never written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from bs_cluster.campaign.in_process import encoder
from bs_cluster.campaign.lessons import teach_anchor
from bs_cluster.campaign.promote import bundle_losses
from bs_cluster.config.identity import effective_domain
from bs_cluster.data.batch import train_batches
from bs_cluster.data.encode import EncodedRow
from bs_cluster.data.frozen import DomainRows
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import DomainRecord
from bs_cluster.store import Store
from bs_cluster.store.bundle_config import bundle_config
from bs_cluster.training.packing import pack_rows
from bs_cluster.training.round import round_seed

Batch = Sequence[EncodedRow]


class Campaign:
    """The newest bundle of a campaign, and the records of its domains."""

    def __init__(self, store: Store):
        _, _, self.bundle = store.bundles()[-1]
        self.store, self.config = store, bundle_config(store, self.bundle)
        self.domains = self.bundle.domains
        self.losses = bundle_losses(store, self.bundle)
        self.report = json.loads(store.get_bytes(self.bundle.file("report.json").sha256))
        records = {record.domain: record for record in store.domains()}
        self.records: list[DomainRecord] = [records[domain] for domain in self.domains]
        self.rows = {record.domain: DomainRows.of(record, store.get_bytes) for record in self.records}
        unowned = store.get_bytes(self.bundle.file("unowned.parquet").sha256)
        self.parts = [*self.rows.values(), DomainRows.from_parquet(unowned, "", {})]
        known = {row.id: row for part in self.parts for row in part.sweep}
        self.sweep: list[EncodedRow] = [known[id] for id in self.losses.row_ids]

    @classmethod
    def named(cls, text: str) -> Campaign:
        """The campaign of ``store:name``."""
        uri, _, name = text.rpartition(":")
        return cls(Store(uri, name))

    @property
    def data(self) -> str:
        """What its rows are: the kinds of its domains' sources."""
        return "+".join(sorted({source.kind for domain in self.config.domains for source in domain.sources}))

    @property
    def rank(self) -> int:
        """A LoRA of this rank has as many rank directions as the stacks of a domain that keeps all of its rounds."""
        rounds = max(len(record.rounds) for record in self.records)
        return rounds * self.config.stack.experts * self.config.stack.rank

    @cached_property
    def batches(self) -> dict[str, list[Batch]]:
        """By domain, every step's global batch: the rows of all of its rounds, kept or not, in the order in which they
        were learned from."""
        return {record.domain: self._batches(record) for record in self.records}

    def _batches(self, record: DomainRecord) -> list[Batch]:
        training, train = self.config.training, self.rows[record.domain].train
        units = pack_rows(train, self.config.data.max_length) if training.packing else [[row] for row in train]
        steps = effective_domain(self.config, record.domain).steps
        return [
            [row for unit in batch for row in units[unit]]
            for done in record.rounds
            for batch in train_batches(
                len(units),
                steps=steps,
                global_batch=training.global_batch,
                seed=round_seed(self.config.seed, done.stack.name),
            )
        ]

    def trained_parameters(self) -> int:
        """Of all committed stacks. Noise weights count where there was noise to scale."""
        return sum(
            tensor.numel()
            for ref in self.bundle.stacks
            for key, tensor in self.store.load_stack(self.store.manifest(ref.manifest)).tensors.items()
            if self.config.training.noise or "stack_noise" not in key
        )

    def classify(self, base: StackedBase) -> tuple[str, ...]:
        """For each sweep row the domain that the anchor names, from the bare base's states of its prompt: a classifier
        of training prompts, which never sees a loss. Empty where the prompt is too far from every domain."""
        encode = encoder(base, self.config)
        anchor = teach_anchor(self.config, self.domains, self.rows, encode)
        prompts = {
            row.id: prompt for part in self.parts for row, prompt in zip(part.sweep, part.router_prompts, strict=True)
        }
        states_BF = np.stack(encode([prompts[row.id] for row in self.sweep], True))
        logits_BD = anchor.logits(anchor.similarity(anchor.directions(states_BF)))
        return tuple(self.domains[int(row_D.argmax())] if row_D.max() > 0 else "" for row_D in logits_BD)
