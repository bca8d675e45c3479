"""A full or broken disk outside of the store: told in words, and no reason for a campaign to fail where only MLflow's
view needs it.
"""

import errno
import os

import pytest
from tiny_campaign import campaign
from tiny_history import commit_round

from bs_cluster import failpoints
from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.recorder import Recorder
from bs_cluster.cli import config as verb
from bs_cluster.cli.main import main


@pytest.fixture
def strike(tmp_path, monkeypatch):
    def armed(fault: str) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        variables = {failpoints.ARMED: fault, failpoints.HIT: str(marks)}
        monkeypatch.setattr(failpoints, "_armed", failpoints.parse(variables))

    return armed


@pytest.mark.parametrize("fault", ["enospc", "eio"])
def test_mirroring_waits_for_the_disk_and_the_campaign_goes_on(tmp_path, monkeypatch, strike, fault):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    held = Campaign.of(campaign(tmp_path, tmp_path / "store", ("aa",)))
    commit_round(held.store, tmp_path / "staged", "aa", 1)
    strike(f"registry.mirror={fault}")
    said: list[str] = []
    with Recorder(held, said.append) as recorder:
        recorder.sync()
        recorder.finish()  # mirrors again, and now there is room
        assert recorder._registry is not None
        assert recorder._registry.sync(held.store).stacks == ()
    (told,) = said
    assert "a file outside of the store cannot be read or written" in told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_the_command_tells_a_full_disk_in_words(monkeypatch, capsys, number):
    def run(*_):
        raise OSError(number, os.strerror(number), "/report/figures/losses.png")

    monkeypatch.setattr(verb, "run", run)
    assert main(["config", "schema"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("DiskError: /report/figures/losses.png cannot be read or written (")
    assert "run the same command again" in told


def test_what_is_no_disk_s_fault_stays_the_defect_that_it_is(monkeypatch):
    def run(*_):
        raise FileNotFoundError(errno.ENOENT, "no such file", "bug.py")

    monkeypatch.setattr(verb, "run", run)
    with pytest.raises(FileNotFoundError):
        main(["config", "schema"])
