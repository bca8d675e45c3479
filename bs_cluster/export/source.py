"""What is exported, read from the store: the rounds of the wanted domains, their rows, and their base by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bs_cluster.base.packaged import EMBEDDED
from bs_cluster.config.schema import BaseSection, CampaignConfig
from bs_cluster.data.frozen import DomainRows
from bs_cluster.errors import UsageError
from bs_cluster.export.record import LORA, STACK, Wanted
from bs_cluster.records import BundleManifest, DomainRecord, StackManifest, StackRef
from bs_cluster.store import Store
from bs_cluster.store.bundle_config import bundle_config


@dataclass(frozen=True)
class Source:
    """``stacks`` are the committed rounds of the wanted domains, domain by domain in the bundle's order, each from its
    first; ``rows`` those domains' frozen rows."""

    store: Store
    bundle: BundleManifest
    digest: str
    config: CampaignConfig
    wanted: Wanted
    stacks: tuple[tuple[StackRef, StackManifest], ...]
    records: Mapping[str, DomainRecord]

    @property
    def manifests(self) -> list[StackManifest]:
        return [manifest for _, manifest in self.stacks]

    def rows(self, domain: str) -> DomainRows:
        return DomainRows.of(self.records[domain], self.store.get_bytes)


def read_source(store: Store, bundle: BundleManifest, digest: str, wanted: Wanted) -> Source:
    """Raises UsageError for what this bundle does not have or the form cannot be; nothing heavy is read."""
    if unknown := [domain for domain in wanted.gates if domain not in bundle.domains]:
        raise UsageError(f"domain {unknown[0]!r} is not in bundle {bundle.number}; it has {', '.join(bundle.domains)}")
    found = [(ref, store.manifest(ref.manifest)) for ref in bundle.stacks if ref.stack.domain in wanted.gates]
    found.sort(key=lambda pair: (pair[1].position, pair[1].stack.round))
    kept = {ref.stack.domain for ref, _ in found}
    if bare := [domain for domain in wanted.gates if domain not in kept]:
        raise UsageError(f"domain {bare[0]!r} has no committed stack in bundle {bundle.number}: the base is all it is")
    if wanted.form == STACK and (len(wanted.gates) > 1 or set(wanted.gates.values()) != {1.0}):
        raise UsageError(
            "the form stack is one domain at full strength, with --domain; gates are fixed in lora and merged"
        )
    if wanted.rank is not None and wanted.form != LORA:
        raise UsageError(f"--rank is of a plain LoRA: add --form {LORA}, or leave it out")
    config = bundle_config(store, bundle)
    whole = config.stack.experts * config.stack.rank * len(found)
    if wanted.rank is not None and not 1 <= wanted.rank <= whole:
        raise UsageError(
            f"--rank {wanted.rank}: these {len(found)} stacks are of rank {whole} together; name 1 to {whole}"
        )
    records = {record.domain: record for record in store.closings_of(bundle) if record.domain in wanted.gates}
    return Source(store, bundle, digest, config, wanted, tuple(found), records)


@dataclass(frozen=True)
class BaseName:
    """The base as somebody else finds it: ``hub`` is its name on the Hub, None where it has none there; ``words`` say
    what the stacks were trained on; ``license`` is the Hub's word for its licence, None where it is not known."""

    hub: str | None
    revision: str | None
    words: str
    license: str | None


def base_name(base: BaseSection) -> BaseName:
    kind, _, name = base.model.partition(":")
    packed = f"in {base.quantization.upper()}" if base.quantization != "none" else "not quantised"
    how = f"{packed}, computed in {base.compute_dtype}"
    if kind == "embedded":
        known = EMBEDDED[name]
        words = (
            f"[{known.hub}](https://huggingface.co/{known.hub}) as `{known.install}` has it: a 4-bit GGUF with SHA-256 "
            f"`{known.gguf_sha256}`, unpacked to bf16, then {how}. The Hub's own weights differ from those by what the "
            "GGUF rounded"
        )
        return BaseName(known.hub, None, words, known.license)
    if kind == "random":
        made = ", ".join(f"{key} {value}" for key, value in base.random.model_dump().items())
        return BaseName(None, None, f"a {name} of random weights that bs_cluster makes ({made}); {how}", None)
    if Path(base.model).expanduser().is_dir():
        folder = Path(base.model).expanduser().name
        return BaseName(None, None, f"`{folder}`, a folder where it was trained; {how}", None)
    at = f" at revision `{base.revision}`" if base.revision else ", no revision pinned"
    return BaseName(base.model, base.revision, f"[{base.model}](https://huggingface.co/{base.model}){at}; {how}", None)
