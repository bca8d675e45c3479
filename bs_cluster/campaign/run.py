"""The outer loop, read top to bottom. Every step is idempotent: run the same command again and it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import ray

from bs_cluster.campaign.bundle import commit_bundle, report_inputs, stack_figures
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.console import Console
from bs_cluster.campaign.encoding import fetch, start_encoding, start_unowned
from bs_cluster.campaign.measure import isolated_rows, start_evaluators, stop_evaluators, sweep_and_route
from bs_cluster.campaign.recorder import Recorder
from bs_cluster.campaign.train import start_coordinator, train_stacks
from bs_cluster.config.identity import bundle_digest
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import check_identity
from bs_cluster.errors import StoreError
from bs_cluster.events import Event, StepDone
from bs_cluster.records import BundleManifest
from bs_cluster.report.record import Report
from bs_cluster.report.terminal import render_terminal, terminal_console
from bs_cluster.report.write import write_report
from bs_cluster.sweep.targets import check_targets
from bs_cluster.training.launch import resource_plan

SWEEP_LINE_EVERY_S = 15.0


def run_campaign(config: CampaignConfig, console: Console) -> int:
    """Trains what is missing, sweeps, routes, bundles, reports. Returns the exit code. Raises BrainstacksError."""
    campaign = Campaign.of(config)
    store, domains = campaign.store, campaign.domains
    check_targets(config.router.targets, domains, config.sweep)
    check_identity(store, config)
    plan = resource_plan(config, ray.cluster_resources(), autoscales=autoscales())
    recorder = Recorder(campaign, console.say)

    done = finished_bundle(campaign)
    if done is not None:
        console.say(f"campaign {config.campaign} is complete: bundle {done.number}, nothing left to do")
        recorder.finish()
        show_report(Report.from_json(store.get_bytes(done.file("report.json").sha256)), config, recorder)
        return 0

    console.say(f"campaign {config.campaign}: {' -> '.join(domains)}")
    handles = start_encoding(campaign)
    if {record.domain for record in store.domains()} != set(domains):
        coordinator = start_coordinator(config)
        train_stacks(config, plan, handles, coordinator, run_storage(config), _on_event(console, recorder))
        ray.kill(coordinator)
    timing = {"train": console.seconds}
    if not store.stacks():
        raise StoreError("no round of any domain beat its parent; nothing to serve. Raise training.steps or the rate")

    evaluators = start_evaluators(campaign)
    try:
        console.say(f"{'sweep':<14} {len(evaluators)} evaluators load {len(store.stacks())} stacks")
        rows = fetch(handles)
        unowned = ray.get(start_unowned(campaign))
        routing = sweep_and_route(campaign, evaluators, rows, unowned, _sweep_progress(console), console.say)
        isolated = isolated_rows(campaign, evaluators, rows)
    finally:
        stop_evaluators(evaluators)
    timing |= {**routing.timing, "total": console.seconds}

    directory = run_folder(config)
    inputs = report_inputs(campaign, rows, routing, isolated, timing)
    report = write_report(inputs, directory)
    number, _ = commit_bundle(campaign, routing, report, directory)
    console.say(f"{'bundle':<14} {number} committed")
    recorder.finish(directory, stack_figures(store, inputs.histories, directory / "stacks"))
    show_report(report, config, recorder)
    return 0


def finished_bundle(campaign: Campaign) -> BundleManifest | None:
    """The newest bundle, if it answers this very config with everything that is committed."""
    config, store, domains = campaign.config, campaign.store, campaign.domains
    bundles = store.bundles()
    if not bundles:
        return None
    bundle = bundles[-1][2]
    complete = bundle.stacks == tuple(ref for ref, _ in store.stacks()) and bundle.domains == domains
    closed = {record.domain for record in store.domains()} == set(domains)
    return bundle if complete and closed and bundle.config_digest == bundle_digest(config) else None


def show_report(report: Report, config: CampaignConfig, recorder: Recorder) -> None:
    print(flush=True)
    terminal_console().print(render_terminal(report))
    print()
    print(f"  report and figures   {run_folder(config)}")
    print(f"  MLflow               mlflow server --backend-store-uri {recorder.uri}", flush=True)


def run_folder(config: CampaignConfig) -> Path:
    """Where this machine keeps the report's files: beside a local store, else in the user's cache."""
    remote = "://" in config.store.uri
    root = Path(config.base.cache_dir).expanduser() / "runs" if remote else Path(config.store.uri)
    folder = root / config.campaign / "report"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_storage(config: CampaignConfig) -> str:
    """Ray Train's own bookkeeping; every node must reach it, like the store."""
    if "://" in config.store.uri:
        return f"{config.store.uri.rstrip('/')}/{config.campaign}/ray"
    return str(Path(config.store.uri).resolve() / config.campaign / "ray")


def autoscales() -> bool:
    """Whether nodes can be added, so that resources not there yet may come."""
    return (
        Path("~/ray_bootstrap_config.yaml").expanduser().exists()  # the cluster launcher's head
        or "KUBERNETES_SERVICE_HOST" in os.environ
        or "RAY_FAKE_CLUSTER" in os.environ
    )


def _on_event(console: Console, recorder: Recorder) -> Callable[[Event], None]:
    """Shows an event and records it. MLflow waits for the first step: importing it would slow the workers' start."""
    waiting: list[Event] | None = []

    def on_event(event: Event) -> None:
        nonlocal waiting
        console.show(event)
        if waiting is not None:
            waiting.append(event)
            if isinstance(event, StepDone):
                ready, waiting = waiting, None
                for earlier in ready:
                    recorder.record(earlier)
        else:
            recorder.record(event)

    return on_event


def _sweep_progress(console: Console) -> Callable[[int, int], None]:
    last = -1.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or console.seconds - last >= SWEEP_LINE_EVERY_S:
            last = console.seconds
            console.say(f"{'sweep':<14} {done}/{total} outcomes")

    return progress
