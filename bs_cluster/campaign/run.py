"""The outer loop, read top to bottom. Every step is idempotent: run the same command again and it goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import ray

from bs_cluster.campaign.answers import answer_and_check
from bs_cluster.campaign.bundle import commit_bundle, report_inputs, stack_figures
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.connect import loss_in_words
from bs_cluster.campaign.console import Console
from bs_cluster.campaign.encoding import fetch, fetch_unowned, start_encoding, start_unowned
from bs_cluster.campaign.measure import (
    isolated_rows,
    probe_domains,
    sweep_and_route,
)
from bs_cluster.campaign.measured import Measured
from bs_cluster.campaign.nodes import nodes_for, read_cluster
from bs_cluster.campaign.promote import promote
from bs_cluster.campaign.recorder import Recorder
from bs_cluster.campaign.resources import refuse_impossible, refuse_rollouts, sweep_ask, training_ask
from bs_cluster.campaign.signals import stop_on_signals
from bs_cluster.campaign.telemetry import Telemetry
from bs_cluster.campaign.train import train_stacks
from bs_cluster.config.identity import bundle_digest
from bs_cluster.config.schema import CampaignConfig
from bs_cluster.coordinator.coordinator import check_domains, check_identity
from bs_cluster.coordinator.room import refuse_without_room
from bs_cluster.errors import StoreError
from bs_cluster.events import BundleReady, Event, StepDone
from bs_cluster.records import BundleManifest
from bs_cluster.report.record import Report
from bs_cluster.report.terminal import render_terminal, terminal_console
from bs_cluster.report.write import write_report
from bs_cluster.sweep.evaluators import start_evaluators, stop_evaluators
from bs_cluster.sweep.targets import check_targets

PROGRESS_LINE_EVERY_S = 15.0


def run_campaign(config: CampaignConfig, console: Console) -> int:
    """Trains what is missing, sweeps, routes, bundles, reports. Returns the exit code. Raises BrainstacksError."""
    campaign = Campaign.of(config)
    check_targets(config.router.targets, campaign.domains, config.sweep)
    check_identity(campaign.store, config)
    check_domains(campaign.store.live(), campaign.domains)
    recorder = Recorder(campaign, console.say)
    with stop_on_signals(), loss_in_words(), console.heartbeat(), recorder, Telemetry(campaign.name) as telemetry:
        done = finished_bundle(campaign)
        if done is not None:
            console.say(f"campaign {campaign.name} is complete: bundle {done.number}, nothing left to do")
            announce(campaign, done, console)
            console.begin("MLflow is brought up to the store")
            recorder.finish()
            report = campaign.store.get_bytes(done.file("report.json").sha256)
            show_report(Report.from_json(report), campaign, recorder)
            return 0

        if config.null_space.enabled and not campaign.all_closed:
            refuse_without_room(campaign.store)
        workers, evaluators = training_ask(config), sweep_ask(config)
        cluster = read_cluster()
        refuse_impossible((workers, evaluators), cluster)
        refuse_rollouts(config, cluster)
        console.say(f"campaign {campaign.name}: {' -> '.join(campaign.domains)}")
        console.begin("rows are read, split and encoded")
        handles = start_encoding(campaign)
        if not campaign.all_closed:
            with nodes_for(workers, cluster, config.training.start_timeout_s, console.say) as room:
                train_stacks(campaign, handles, room, _on_event(console, recorder, telemetry), console.say)
        timing = {"train": console.seconds}
        if not campaign.store.stacks():
            raise StoreError(
                "no round of any domain beat its parent; nothing to serve. Raise training.steps or the rate"
            )

        with nodes_for(evaluators, cluster, config.training.start_timeout_s, console.say):
            measured = measure(campaign, handles, console, telemetry)
        timing |= {**measured.routing.timing, "answers": measured.answers.seconds, "total": console.seconds}

        console.begin("report, figures and bundle are written")
        directory = campaign.report_folder()
        inputs = report_inputs(campaign, measured, timing)
        report = write_report(inputs, directory)
        number, bundle = commit_bundle(campaign, measured, inputs, report, directory)
        console.say(f"{'bundle':<14} {number} committed")
        announce(campaign, bundle, console)
        console.begin("MLflow is brought up to the store")
        recorder.finish(directory, stack_figures(campaign.store, inputs.histories, directory / "stacks"))
        show_report(report, campaign, recorder)
        return 0


def measure(
    campaign: Campaign, handles: Mapping[str, ray.ObjectRef], console: Console, telemetry: Telemetry
) -> Measured:
    """The second phase, on evaluators that live no longer than it does."""
    evaluators = start_evaluators(campaign.config)
    try:
        console.begin(f"{'sweep':<14} evaluators load the base and {len(campaign.store.stacks())} stacks")
        console.say(f"{'sweep':<14} {len(evaluators)} evaluators load {len(campaign.store.stacks())} stacks")
        rows = fetch(handles, console.say)
        unowned = fetch_unowned(start_unowned(campaign), console.say)
        progress = functools.partial(_progress, console, telemetry)
        routing = sweep_and_route(campaign, evaluators, rows, unowned, progress, console.say)
        console.begin(f"{'answers':<14} rows are answered and checked")
        answers = answer_and_check(campaign, evaluators, rows, routing, console.say)
        console.begin(f"{'measure':<14} each domain alone, to compare with its closing")
        isolated = isolated_rows(campaign, evaluators, rows)
        return Measured(rows, routing, answers, isolated, probe_domains(campaign, evaluators, rows))
    finally:
        stop_evaluators(evaluators)


def finished_bundle(campaign: Campaign) -> BundleManifest | None:
    """The newest bundle, those with retired stacks left out, if it answers this very config with everything live."""
    config, store, domains = campaign.config, campaign.store, campaign.domains
    outdated, _ = store.out_of_date()
    bundles = [bundle for number, _, bundle in store.bundles() if number not in outdated]
    if not bundles:
        return None
    bundle = bundles[-1]
    complete = bundle.stacks == tuple(ref for ref, _ in store.stacks()) and bundle.domains == domains
    return bundle if complete and campaign.all_closed and bundle.config_digest == bundle_digest(config) else None


def announce(campaign: Campaign, bundle: BundleManifest, console: Console) -> None:
    """Promotes the bundle, unless that was decided before, and says who is served from now on."""
    promotion = promote(campaign.store, bundle, campaign.config.promotion)
    console.show(BundleReady(bundle.number, promotion.alias, promotion.reason, bundle.metrics))
    champion = campaign.store.standing().champion
    if champion is None or champion.bundle != bundle.number:
        serves = f"bundle {champion.bundle} is served" if champion else "nothing is served yet"
        console.say(f"{'bundle':<14} {serves}; bundle {bundle.number} by: bs_cluster bundles promote {bundle.number}")


def show_report(report: Report, campaign: Campaign, recorder: Recorder) -> None:
    print(flush=True)
    terminal_console().print(render_terminal(report))
    print()
    print(f"  report and figures   {campaign.report_folder()}")
    print(f"  MLflow               mlflow server --backend-store-uri {recorder.uri}", flush=True)


def _on_event(console: Console, recorder: Recorder, telemetry: Telemetry) -> Callable[[Event], None]:
    """Shows an event and records it. MLflow waits for the first step: importing it would slow the workers' start."""
    waiting: list[Event] | None = []

    def on_event(event: Event) -> None:
        nonlocal waiting
        console.show(event)
        telemetry.record(event)
        if waiting is not None:
            waiting.append(event)
            if isinstance(event, StepDone):
                ready, waiting = waiting, None
                for earlier in ready:
                    recorder.record(earlier)
        else:
            recorder.record(event)

    return on_event


def _progress(console: Console, telemetry: Telemetry, part: str, what: str) -> Callable[[int, int], None]:
    """Tells, now and then, how many of ``what`` are done of all."""
    last = -1.0
    console.begin(f"{part:<14} {what}")

    def progress(done: int, total: int) -> None:
        nonlocal last
        console.begin(f"{part:<14} {what}")
        telemetry.progress(part, done, total)
        if done == total or console.seconds - last >= PROGRESS_LINE_EVERY_S:
            last = console.seconds
            console.say(f"{part:<14} {done}/{total} {what}")

    return progress
