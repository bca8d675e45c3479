"""Killed at the worst times, a campaign ends with the history it would have had: a worker by its node, the driver by
whoever runs it.
"""

import re
from pathlib import Path

import job
import pytest
from campaigns import DOMAINS, outcome, refs
from mlflow import MlflowClient

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def disturbed(run, finished, tiny_settings, tmp_path_factory):
    """Of the first job a worker is killed in aa_r2, then the job is; the second one finishes."""
    folder = tmp_path_factory.mktemp("disturbed")
    settings, uri = tiny_settings(folder / "store"), folder / "store"
    settings["training"]["checkpoint_every_s"] = 1e-6  # a checkpoint after each step
    config = job.write_config(folder / "tiny.yaml", settings)
    committed, kept = uri / "tiny" / "refs" / "stacks", uri / "tiny" / "rounds" / "aa_r2"
    first = job.Running(config, folder / "first.log")
    try:
        first.wait_until("checkpoint of aa_r2", lambda: any(kept.glob("*.safetensors")))
        workers = first.children("ray::RayTrainWorker")
        assert len(workers) == 2
        workers[-1].kill()
        first.wait_until("commit of aa_r2", (committed / "aa" / "2.json").exists)
    finally:
        first.kill()
    before = refs(uri)
    return first.log.read_text(), before, outcome(run(config), config, uri)


def test_a_lost_worker_costs_a_part_of_its_round_only(disturbed):
    log, _, done = disturbed
    assert log.count("2 workers load") == 2
    assert log.count("aa_r2          training begins") == 2
    (step,) = re.findall(r"aa_r2          goes on after step (\d), from its checkpoint", log)
    assert 1 <= int(step) < 6
    assert "checkpoint of step" not in log  # all were written, and the newest was taken
    assert "Traceback" not in log
    assert not any(Path(done.store.uri, "tiny", "rounds").rglob("*.safetensors"))


def test_the_second_job_goes_on_where_the_first_was_killed(disturbed):
    _, before, done = disturbed
    assert "bundles/1.json" not in before
    assert {name: done.refs[name] for name in before} == before
    assert "aa_r1" not in done.job.out
    assert "bb_r1          training begins" in done.job.out


def test_the_stacks_are_those_of_the_undisturbed_campaign(disturbed, finished):
    _, _, done = disturbed
    # Another module may have added a domain to the undisturbed campaign since; what is closed never changes.
    undisturbed = [ref for ref, _ in finished.store.stacks() if ref.stack.domain in DOMAINS]
    assert [ref for ref, _ in done.store.stacks()] == undisturbed
    assert done.store.verify().sound


def test_so_are_claims_and_losses(disturbed, finished):
    _, _, done = disturbed
    undisturbed = [record for record in finished.store.domains() if record.domain in DOMAINS]
    for mine, theirs in zip(done.store.domains(), undisturbed, strict=True):
        assert (mine.domain, mine.basis, mine.rows) == (theirs.domain, theirs.basis, theirs.rows)
        assert (mine.isolated, mine.row_losses, mine.matrix) == (theirs.isolated, theirs.row_losses, theirs.matrix)
        assert [(r.stack, r.manifest, r.committed, r.reason) for r in mine.rounds] == [
            (r.stack, r.manifest, r.committed, r.reason) for r in theirs.rounds
        ]
    assert done.report["isolated_drift_max"] == 0


def test_mlflow_has_each_stack_and_each_round_once(disturbed):
    _, _, done = disturbed
    uri = f"sqlite:///{done.store.uri}/mlflow.db"
    client = MlflowClient(uri, uri)
    for domain in ("aa", "bb"):
        held = sorted(ref.manifest for ref, _ in done.store.stacks() if ref.stack.domain == domain)
        versions = client.search_model_versions(f"name='tiny-{domain}'")
        assert sorted(version.tags["manifest"] for version in versions) == held
    assert len(client.search_model_versions("name='tiny'")) == 1
    runs = client.search_runs([client.get_experiment_by_name("brainstacks").experiment_id])
    rounds = sum(len(record.rounds) for record in done.store.domains())
    assert len(runs) == 1 + rounds + 1  # the campaign's, the rounds', and that of the bundle's rows
    assert {run.info.status for run in runs} == {"FINISHED"}
