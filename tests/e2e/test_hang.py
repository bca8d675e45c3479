"""A training worker that stands still, in a job as a user runs it."""

import re

import job
import pytest

from bs_cluster.failpoints import ARMED, HIT

HANG_S = 15  # many times what any step or batch of the tiny model takes

pytestmark = [pytest.mark.long, pytest.mark.ray]


def test_it_ends_with_its_stacks_and_another_goes_on_from_its_checkpoint(tiny_settings, tmp_path):
    settings = tiny_settings(tmp_path / "store", ("aa", "bb"))
    settings["training"] |= {"checkpoint_every_s": 1e-6, "hang_timeout_s": HANG_S}  # a checkpoint after each step
    config = job.write_config(tmp_path / "tiny.yaml", settings)
    hangs = {ARMED: "training.step=hang@3", HIT: str(tmp_path)}
    running = job.Running(config, tmp_path / "log", **hangs)
    try:
        running.wait_until("commit of aa_r1", (tmp_path / "store/tiny/refs/stacks/aa/1.json").exists)
    finally:
        running.kill()
    log = running.log.read_text()
    told = rf"training worker (\d) of 2 stood still for {HANG_S} s \(training.hang_timeout_s\) in _meet \(failpoints.py"
    assert len(re.findall(told, log)) == 1
    assert log.count("aa_r1          training begins") == 2
    assert "aa_r1          goes on after step 2, from its checkpoint" in log
