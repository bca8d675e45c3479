"""A campaign that is stopped ends in order: the signal is an error like others, and MLflow hears of it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from job import run_statuses
from tiny_campaign import campaign

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.recorder import Recorder
from bs_cluster.campaign.signals import stop_on_signals
from bs_cluster.errors import Stopped, StoreError
from bs_cluster.events import RoundStarted
from bs_cluster.records import StackId
from bs_cluster.registry import Registry


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_is_an_error_that_names_it(number, name):
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {name}; run the same command to go on") as raised, stop_on_signals():
        os.kill(os.getpid(), number)
    assert raised.value.number == number
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_a_process_that_hangs_while_it_ends():
    program = (
        "import os, signal\n"
        "from bs_cluster.campaign.signals import stop_on_signals\n"
        "with stop_on_signals():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (Stopped(signal.SIGTERM), "KILLED"), (StoreError("no"), "FAILED")]
)
def test_the_campaign_s_run_says_how_it_ended(tmp_path, monkeypatch, error, status):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recorder = Recorder(Campaign.of(campaign(tmp_path, tmp_path / "store", ("aa",))), print)
    try:
        with recorder:
            recorder.record(RoundStarted(StackId("aa", 1), 6))
            recorder.sync()
            recorder._flush(60)
            if error is not None:
                raise error
    except (Stopped, StoreError):
        pass
    assert run_statuses(recorder.uri)["tiny"] == status


def test_a_signal_at_the_first_step_leaves_no_round_running(tmp_path, monkeypatch):
    """A pool whose thread's start is interrupted starts another beside it: one began the round, one ended it first."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recorder = Recorder(Campaign.of(campaign(tmp_path, tmp_path / "store", ("aa",))), print)
    start, round_started = threading.Thread.start, Registry.round_started

    def slow(registry, stack, config):
        time.sleep(2)
        round_started(registry, stack, config)

    def stopped_while_it_starts(thread):
        start(thread)
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGTERM)

    def run():
        with stop_on_signals(), recorder:
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", stopped_while_it_starts)
                recorder.record(RoundStarted(StackId("aa", 1), 6))
            recorder._flush(60)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Registry, "round_started", slow)
    with pytest.raises(Stopped):
        run()
    assert run_statuses(recorder.uri) == {"tiny": "KILLED", "aa_r1": "KILLED"}
