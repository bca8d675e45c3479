"""A campaign's rows: read, split and encoded once, in a task, then fetched by reference wherever they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions

from bs_cluster.base.tokenizer import load_tokenizer
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.config.schema import VALIDATION_ROWS_NEEDED, CampaignConfig
from bs_cluster.data.aligned import Known, counts_of, load_aligned, with_aligned
from bs_cluster.data.domains import load_domains
from bs_cluster.data.encode import encode_router_prompt, encode_rows
from bs_cluster.data.frozen import DomainRows
from bs_cluster.data.rows import DomainData
from bs_cluster.data.split import fingerprint
from bs_cluster.data.unowned import load_unowned
from bs_cluster.errors import DataError
from bs_cluster.quiet import quieten
from bs_cluster.waiting import ROWS_PATIENCE_S, ROWS_REMEDY, Say, say, wait_for


def start_encoding(campaign: Campaign) -> dict[str, ray.ObjectRef]:
    """A reference to each domain's rows at once; they are there when the task is done. The driver owns them."""
    domains = campaign.domains
    task = ray.remote(_encode).options(num_cpus=0, num_returns=len(domains), max_retries=2)
    found: Any = task.remote(campaign.config.model_dump(mode="json"))
    return dict(zip(domains, found if len(domains) > 1 else [found], strict=True))


def start_unowned(campaign: Campaign) -> ray.ObjectRef:
    """A reference to the rows that no domain owns, read and encoded by a task, if there are to be any."""
    config = campaign.config
    if not (config.sweep.mixed or config.sweep.foreign):
        return ray.put(
            DomainRows(
                train=(),
                validation=(),
                sweep=(),
                router_prompts=(),
                questions=(),
                fingerprint=fingerprint(sweep=()),
                counts={},
            )
        )
    return ray.remote(_encode_unowned).options(num_cpus=0, max_retries=2).remote(config.model_dump(mode="json"))


def fetch(handles: Mapping[str, ray.ObjectRef], say: Say = say) -> dict[str, DomainRows]:
    return {domain: _rows(domain, handle, say) for domain, handle in handles.items()}


def fetch_unowned(handle: ray.ObjectRef, say: Say = say) -> DomainRows:
    return _rows("no domain", handle, say)


def encoded(handles: Mapping[str, ray.ObjectRef]) -> bool:
    """Whether the rows are there; returns at once. Raises the encoding task's own error, a DataError mostly."""
    domain, handle = next(iter(handles.items()))
    ready, _ = ray.wait([handle], timeout=0)
    if ready:
        _rows(domain, handle, say)
    return bool(ready)


def _rows(domain: str, handle: ray.ObjectRef, say: Say) -> DomainRows:
    return wait_for(lambda: handle, f"the encoded rows of {domain}", ROWS_PATIENCE_S, ROWS_REMEDY, say)


def _encode(config: dict[str, Any]) -> Any:
    quieten()
    encoded = list(encode_domains(Campaign.of(CampaignConfig.model_validate(config))).values())
    return encoded if len(encoded) > 1 else encoded[0]  # as many as ``num_returns`` said


def _encode_unowned(config: dict[str, Any]) -> DomainRows:
    quieten()
    return encode_unowned(CampaignConfig.model_validate(config))


def encode_unowned(config: CampaignConfig) -> DomainRows:
    """The rows of ``sweep.mixed`` and ``sweep.foreign``: a sweep without training or validation."""
    rows = load_unowned(config)
    tokenizer, limit = load_tokenizer(config.base), config.router.max_prompt_length
    owners = [row.domain for row in rows]
    return DomainRows(
        train=(),
        validation=(),
        sweep=tuple(encode_rows(rows, tokenizer, config.data)),
        router_prompts=tuple(tuple(encode_router_prompt(row.asked, tokenizer, config.data, limit)) for row in rows),
        questions=tuple(row.question for row in rows),
        fingerprint=fingerprint(sweep=rows),
        counts={owner: owners.count(owner) for owner in dict.fromkeys(owners)},
    )


def encode_domains(campaign: Campaign) -> dict[str, DomainRows]:
    """Every domain's encoded splits, in curriculum order.

    A closed domain's rows are those of its record, whatever its sources give today, and so are those of one that closes
    again on the rounds that it has left; the rows of an open domain are read anew, less any that a closed domain has
    trained or been judged on.
    """
    config, store, domains = campaign.config, campaign.store, campaign.domains
    now = store.live()
    records = [*now.closings.values(), *now.reopened.values()]
    closed = {record.domain: DomainRows.of(record, store.get_bytes) for record in records}
    if set(closed) >= set(domains):
        return {name: closed[name] for name in domains}
    tokenizer = load_tokenizer(config.base)
    taken = frozenset().union(*(rows.ids for rows in closed.values()))
    loaded = load_domains(config, tokenizer)
    known = Known.of(loaded.values())

    def encode(data: DomainData) -> DomainRows:
        aligned = {
            place: load_aligned(config, data.name, place, known, tokenizer)
            for place, entry in enumerate(config.domain(data.name).rounds)
            if entry.aligned
        }
        limit = config.router.max_prompt_length
        rows = DomainRows(
            train=tuple(encode_rows(data.train, tokenizer, config.data)),
            validation=tuple(encode_rows(data.validation, tokenizer, config.data)),
            sweep=tuple(encode_rows(data.sweep, tokenizer, config.data)),
            router_prompts=tuple(
                tuple(encode_router_prompt(row.asked, tokenizer, config.data, limit)) for row in data.sweep
            ),
            questions=tuple(row.question for row in data.sweep),
            fingerprint=with_aligned(data.fingerprint, aligned),
            counts=data.counts | counts_of(aligned),
            aligned=aligned,
        ).without(taken)
        if not (rows.train and rows.validation and rows.sweep):
            raise DataError(
                f"domain {data.name}: every row of a split belongs to a domain that is closed already; "
                "give it rows of its own"
            )
        if len(rows.validation) < VALIDATION_ROWS_NEEDED:
            raise DataError(
                f"domain {data.name}: {len(rows.validation)} of its validation rows belong to no closed domain; "
                f"{VALIDATION_ROWS_NEEDED} are needed, two to choose a stack's snapshot and two to decide about its "
                "commit; give it rows of its own, or raise data.validation_rows"
            )
        return rows

    return {name: closed[name] if name in closed else encode(loaded[name]) for name in domains}
