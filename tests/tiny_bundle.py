"""A bundle that can be served, in miniature: random stacks, an anchored meta-router of a few prompts, in float32.

bundled = commit_bundle(write_inputs(tmp_path), tmp_path / "store", ("aa", "bb"))
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tiny_campaign import campaign, commit_random_stacks

from bs_cluster.config.parse import to_yaml
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.data.encode import encode_router_prompt
from bs_cluster.inference.evaluator import encode_states
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.records import SCHEMA_VERSION, BundleManifest
from bs_cluster.router.anchor import fit_anchor
from bs_cluster.router.familiar import Kinds
from bs_cluster.router.files import Reading, save_router
from bs_cluster.router.fit import Served
from bs_cluster.router.routers import AnchoredRouter
from bs_cluster.store import Store

# With bf16, a cache or a neighbour in the batch may decide between two tokens that are nearly as likely.
EXACT = {"quantization": "none", "compute_dtype": "float32", "cache_dequantized": False}
LIMIT = 24  # tokens that the meta-router reads


@dataclass(frozen=True)
class Bundled:
    """What was committed, and the base with those stacks in this process."""

    config: CampaignConfig
    store: Store
    stacked: StackedBase
    router: Served
    manifest: BundleManifest


def commit_bundle(inputs: Path, folder: Path, domains: Sequence[str], rounds: int = 1) -> Bundled:
    """The campaign's next bundle in ``folder``, with ``rounds`` stacks for each domain that has none yet; nobody is
    promoted."""
    config = campaign(inputs, folder, domains, base=EXACT, router={"max_prompt_length": LIMIT})
    store = Store(config.store.uri, config.campaign)
    staging = folder.parent / f"staged-{len(domains)}"
    stacked = commit_random_stacks(config, store, staging, rounds)
    prompts = [f"{domain} {word}{n}" for domain in domains for word in ("alpha", "beta") for n in range(6)]
    ids = [encode_router_prompt(prompt, stacked.base.tokenizer, config.data, LIMIT) for prompt in prompts]
    states = np.stack(encode_states(stacked, ids, config.router.mid_weight, pooled=True))
    owners = list(itertools.chain.from_iterable([place] * 12 for place in range(len(domains))))
    masks = tuple(range(1 << len(domains)))
    anchor = fit_anchor(states, owners, len(domains))
    router = Served(AnchoredRouter(anchor, Kinds.of(anchor, anchor.bank_NK[:0], ()), None), masks, None)
    reading = Reading(tuple(domains), 64, config.router.mid_weight, LIMIT, stacked.base.ref.digest)
    save_router(staging, router, reading)
    (staging / "campaign.yaml").write_text(to_yaml(config))
    names = ("router.safetensors", "router.json", "campaign.yaml")
    manifest = BundleManifest(
        schema_version=SCHEMA_VERSION,
        campaign=config.campaign,
        number=len(store.bundles()) + 1,
        base=stacked.base.ref,
        domains=tuple(domains),
        stacks=tuple(ref for ref, _ in store.stacks()),
        files=tuple(store.put_file(staging / name, name) for name in names),
    )
    store.commit_bundle(manifest)
    return Bundled(config, store, stacked, router, manifest)
