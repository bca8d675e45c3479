"""Makes a bundle's certificate, from the store and from what was measured."""

from __future__ import annotations

from collections.abc import Sequence

from bs_cluster.certificate import Certificate, GeneralText, Isolated, RowsUsed, state
from bs_cluster.config.identity import bundle_digest
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.promotion import FOREIGN, LOSSES, ServedChange
from bs_cluster.records import SCHEMA_VERSION, BundleManifest, DomainRecord, ModeLosses
from bs_cluster.report.compare import Compared
from bs_cluster.store import Store

UNOWNED = "unowned.parquet"
OUTCOMES = "outcomes.parquet"
SETTINGS = "campaign.yaml"
# The files of a bundle that its certificate's statements come from.
EVIDENCE = ("router.safetensors", "router.json", OUTCOMES, LOSSES, UNOWNED, "routing.json", SETTINGS)


def certificate_of(
    store: Store,
    bundle: BundleManifest,
    config: CampaignConfig,
    losses: ModeLosses,
    isolated: Sequence[Isolated],
    served: ServedChange | None,
) -> Certificate:
    """The certificate of ``bundle``, whose manifest may lack it still. ``losses`` are its sweep rows', ``served`` what
    it changes against the champion that it was judged against."""
    records = closings(store, bundle)
    general = general_text(losses, bundle.domains)
    return Certificate(
        schema_version=SCHEMA_VERSION,
        campaign=bundle.campaign,
        bundle=bundle.number,
        base=bundle.base,
        stacks=bundle.stacks,
        domains=bundle.domains,
        seed=config.seed,
        config_digest=bundle_digest(config),
        code_version=bundle.code_version,
        files=tuple(entry for entry in bundle.files if entry.name in EVIDENCE),
        closings={record.domain: record.digest() for record in records},
        rows=_rows(bundle, records, losses),
        isolated=tuple(isolated),
        served=served,
        general=general,
        statements=state(isolated, served, general),
    )


def closings(store: Store, bundle: BundleManifest) -> list[DomainRecord]:
    """How each domain of a bundle had closed when the bundle was committed, in the bundle's order."""
    return store.closings_of(bundle)


def general_text(losses: ModeLosses, domains: Sequence[str]) -> GeneralText:
    """What the rows that are foreign to every domain lose under the base, as served and with all stacks on."""
    compared = Compared(losses, domains)
    return GeneralText(
        rows=compared.rows(FOREIGN),
        base=compared.loss("base", FOREIGN),
        served=compared.loss("routed", FOREIGN),
        all_on=compared.loss("ungated", FOREIGN),
        served_change=compared.difference("routed", "base", FOREIGN),
        drift=compared.difference("ungated", "base", FOREIGN),
    )


def _rows(bundle: BundleManifest, records: Sequence[DomainRecord], losses: ModeLosses) -> dict[str, RowsUsed]:
    swept = {owner: losses.owners.count(owner) for owner in dict.fromkeys(losses.owners)}
    found = {
        record.domain: RowsUsed(
            record.rows, record.data_fingerprint, len(record.row_losses), swept.pop(record.domain, 0)
        )
        for record in records
    }
    return found | {owner: RowsUsed(bundle.file(UNOWNED).sha256, None, 0, rows) for owner, rows in swept.items()}
