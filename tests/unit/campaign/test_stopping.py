"""A campaign that is stopped ends in order: the signal is an error like others, and MLflow hears of it."""

import os
import signal
import subprocess
import sys

import mlflow
import pytest
from tiny_campaign import campaign

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.recorder import Recorder
from bs_cluster.campaign.signals import stop_on_signals
from bs_cluster.errors import Stopped, StoreError
from bs_cluster.events import RoundStarted
from bs_cluster.records import StackId


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
    client = mlflow.MlflowClient(recorder.uri, recorder.uri)
    (experiment,) = client.search_experiments(filter_string="name = 'brainstacks'")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name: run.info.status for run in runs}["tiny"] == status
