import dataclasses

import pytest
from tiny_bundle import commit_bundle
from tiny_history import domain_record

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION

DOMAINS = ("aa", "bb")


@pytest.fixture(scope="session")
def bundled(inputs):
    """A campaign of two closed domains of two rounds, in float32, with a bundle of them that is champion."""
    bundled = commit_bundle(inputs, inputs / "exported", DOMAINS, rounds=2)  # those of serving have theirs in "store"
    rows = encode_domains(Campaign.of(bundled.config))
    for position, domain in enumerate(DOMAINS):
        frozen = bundled.store.put_bytes("rows.parquet", rows[domain].to_parquet())
        record = dataclasses.replace(
            domain_record(bundled.store, domain, position),
            rows=frozen.sha256,
            data_fingerprint=rows[domain].fingerprint,
            data_counts=rows[domain].counts,
        )
        bundled.store.close_domain(record)
    manifest = dataclasses.replace(bundled.manifest, number=2)  # the first knew no closing
    bundled.store.commit_bundle(manifest)
    bundled.store.promote(2, CHAMPION, HAND, "the first of closed domains")
    return dataclasses.replace(bundled, manifest=manifest)
