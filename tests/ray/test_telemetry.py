"""What Prometheus scrapes of a campaign, from a real Ray node, and the Grafana page that draws it."""

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from bs_cluster.campaign.telemetry import Telemetry
from bs_cluster.events import DomainClosed, NodeLeaves, RoundEnded, RoundStarted, StepDone
from bs_cluster.records import RoundOutcome, StackId

pytestmark = pytest.mark.ray

PAGE = Path(__file__).parents[2] / "cluster" / "grafana" / "campaign.json"
STACK, OVER = StackId("chat", 2), StackId("chat", 1)
ENDED = RoundOutcome(OVER, 2.5, 2.0, 0.5, 0.1, 26, True, "0" * 64, 4, 1, 9.0, "gain 0.5 ± 0.1 on 26 rows")
STEP = StepDone(STACK, 3, 32, 1.0, "restore", 2.5, 1.0, 1.4, 0.3, 1e-3, selection_loss=2.25)
EVENTS = (
    RoundStarted(STACK, 32),
    STEP,
    StepDone(STACK, 4, 32, 1.0, "go on", 2.0, 1.0, 1.4, 0.3, 1e-3),
    StepDone(OVER, 9, 32, 1.0, "go on", 2.0, 1.0, 1.4, 0.3, 1e-3),
    RoundEnded(ENDED),
    NodeLeaves(STACK, 4, (1,), 120.0),
    DomainClosed("chat", 1.5, 2.5),
)
FORGOTTEN_S = 6  # a gauge that was set once is gone by then: two intervals
PATIENCE_S = 90
Samples = dict[str, list[tuple[dict[str, str], float]]]


def drawn() -> set[str]:
    """The names in the expressions of the page's panels."""
    panels = json.loads(PAGE.read_text(encoding="utf-8"))["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return {name for expression in expressions for name in re.findall(r"ray_bs_cluster_\w+", expression)}


def sampled(address: str) -> Samples:
    """By name the labels and values of this project's samples."""
    text = urllib.request.urlopen(address, timeout=30).read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_bs_cluster_"):
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def settled(found: Samples) -> bool:
    return drawn() <= found.keys() and stacks(found) == {STACK.name}


def stacks(found: Samples) -> set[str]:
    return {labels["stack"] for labels, _ in found.get("ray_bs_cluster_loss", [])}


@pytest.fixture(scope="module")
def scraped():
    often = {"metrics_report_interval_ms": 1000}  # ten seconds by default
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _system_config=often)
    try:
        node = ray.nodes()[0]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with Telemetry("demo") as telemetry:
            for event in EVENTS:
                telemetry.record(event)
            telemetry.progress("sweep", 3, 4)
            time.sleep(FORGOTTEN_S)
            until = time.monotonic() + PATIENCE_S
            while not settled(found := sampled(address)) and time.monotonic() < until:
                time.sleep(1)
        return found
    finally:
        ray.shutdown()


def test_the_page_draws_all_that_is_told_and_nothing_else(scraped):
    assert scraped.keys() == drawn()


def test_values_are_those_of_the_events(scraped):
    def value(name: str, **labels: str) -> float:
        of_demo = {"campaign": "demo", **labels}
        (found,) = [number for own, number in scraped[f"ray_bs_cluster_{name}"] if of_demo.items() <= own.items()]
        return found

    assert (value("step", stack="chat_r2"), value("steps", stack="chat_r2")) == (4, 32)
    assert value("loss", stack="chat_r2") == 2.0
    assert value("selection_loss", stack="chat_r2") == 2.25, "the last one that was measured"
    assert value("steps_undone_total", stack="chat_r2") == 1
    assert value("rounds_total", outcome="committed") == 1
    assert value("nodes_leaving_total") == 1
    assert (value("domain_loss", mode="isolated"), value("domain_loss", mode="base")) == (1.5, 2.5)
    assert value("progress", part="sweep") == 0.75


def test_the_lines_of_a_round_end_with_it(scraped):
    assert stacks(scraped) == {"chat_r2"}
