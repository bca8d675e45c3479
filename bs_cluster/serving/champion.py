"""The champion in memory with its engine's thread started, and followed from then on."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from bs_cluster.errors import BrainstacksError, UsageError
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.catalogue import Catalogue
from bs_cluster.serving.engine import Engine
from bs_cluster.serving.metrics import Metrics
from bs_cluster.serving.residency import Residency
from bs_cluster.serving.scheduler import Scheduler
from bs_cluster.serving.service import Limits, Service
from bs_cluster.serving.settings import Settings
from bs_cluster.store.bundle_config import bundle_config
from bs_cluster.store.store import Store

log = logging.getLogger(__name__)


def load(store: Store, settings: Settings, metrics: Metrics) -> Service:
    """Raises UsageError where the base cannot hold prompts and answers that long."""
    catalogue = Catalogue(store, settings.bundle)
    wanted = catalogue.wanted()
    config = bundle_config(store, store.bundle(wanted[""]))
    # The engine makes its own masks, which this kernel takes on every device.
    stacked = StackedBase.load(config.base.model_copy(update={"attention": "sdpa"}), settings.device)
    residency = Residency(stacked, settings.resident_bytes, metrics)
    catalogue.load(wanted, stacked, residency)
    limits = Limits(settings.max_prompt_tokens or config.data.max_prompt_length, settings.max_tokens)
    length = limits.prompt_tokens + limits.answer_tokens
    reach = stacked.base.model.config.get_text_config().max_position_embeddings
    if length > reach:
        raise UsageError(
            f"prompts of {limits.prompt_tokens} and answers of {limits.answer_tokens} tokens are more than the {reach} "
            "of the base; lower --max-prompt-tokens or --max-tokens, in a Serve file max_prompt_tokens or max_tokens"
        )
    scheduler = Scheduler(Engine(stacked, settings.max_running, length), residency, settings.max_waiting, metrics)
    scheduler.start()
    service = Service(catalogue, scheduler, metrics, limits, settings)
    _show_bundles(service)
    return service


async def follow(service: Service) -> None:
    """Serves what the store says is to be served, also when that changes. Requests that run keep their bundle; what
    cannot be read or loaded is told, and what was served before stays."""
    catalogue, scheduler = service.catalogue, service.scheduler
    while True:
        await asyncio.sleep(service.settings.reload_every)
        try:
            wanted = await asyncio.to_thread(catalogue.wanted)
            if wanted == catalogue.serving:
                continue
            loading = scheduler.call(partial(catalogue.load, wanted, scheduler.engine.stacked, scheduler.residency))
            await asyncio.wrap_future(loading)
        except (BrainstacksError, OSError) as error:
            service.metrics.reloads.labels("failed").inc()
            log.warning("what the store wants to be served cannot be; what was is: %s", error)
        else:
            service.metrics.reloads.labels("done").inc()
            _show_bundles(service)


def _show_bundles(service: Service) -> None:
    catalogue = service.catalogue
    for alias in catalogue.serving:
        number, name = catalogue.bundle(alias).number, alias or "default"
        service.metrics.bundle.labels(name).set(number)
        log.info("%s: bundle %d", name, number)
