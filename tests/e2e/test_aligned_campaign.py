"""A campaign whose domains align, as a user sees it: preferences, rewards that evaluators' answers earn, report and
registry; then one such round is taken back, and what is left is as it was, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import job
import pytest
from campaigns import Outcome, outcome
from mlflow import MlflowClient
from tiny_alignment import tiny_round, with_rounds, write_pairs

from bs_cluster.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@dataclass(frozen=True)
class Aligned:
    """The campaign as it ended first, and after a rollback of bb's round of alignment."""

    first: Outcome
    back: Outcome


@pytest.fixture(scope="module")
def aligned(run, inputs, tiny_settings, tmp_path_factory) -> Aligned:
    folder = tmp_path_factory.mktemp("aligned")
    write_pairs(inputs)
    # Kept whatever it gained: of so few prompts a gain would be luck.
    rounds = {
        "aa": tiny_round(inputs, "dpo"),
        "bb": tiny_round(inputs, "grpo", rollouts="evaluators"),
    }
    settings = with_rounds(tiny_settings(folder / "store"), rounds)
    settings["training"] |= {"steps": 4, "max_rounds": 1, "eval_every": 2, "min_improvement_errors": 0}
    settings["training"]["num_workers"] = settings["sweep"]["evaluators"] = 1
    config = job.write_config(folder / "tiny.yaml", settings)
    first = outcome(run(config), config, folder / "store")
    asked = ("rollback", "--config", str(config), "--name", "bb", "--reason", "its answers got worse")
    assert main(("domains", *asked)) == 0
    return Aligned(first, outcome(run(config), config, folder / "store"))


def test_each_round_is_a_stack_of_its_own_and_says_what_it_is_for(aligned):
    objectives = {manifest.stack.name: manifest.objective for _, manifest in aligned.first.store.every_stack()}
    assert objectives == {"aa_r1": "sft", "aa_r2": "dpo", "bb_r1": "sft", "bb_r2": "grpo"}
    assert aligned.first.report["isolated_drift_max"] == 0


def test_evaluators_answered_in_the_round_that_asked_for_them(aligned):
    out = aligned.first.job.out
    assert out.count("1 evaluator answers in this round") == 1
    assert out.index("bb_r1          committed") < out.index("evaluator answers") < out.index("bb_r2          step")


def test_the_report_says_what_alignment_gained(aligned):
    report = aligned.first.report
    objectives = {f"{row['domain']}_r{row['round']}": row["objective"] for row in report["stacks"]}
    assert objectives == {"aa_r1": "sft", "aa_r2": "dpo", "bb_r1": "sft", "bb_r2": "grpo"}
    assert set(report["aligned_answers"]) == {"aa_r2", "bb_r2"}
    page = (aligned.first.config.parent / "store/tiny/report/report.md").read_text()
    assert "### Answers before and after alignment" in page


def test_mlflow_shows_it_as_any_other_stack(aligned):
    uri = f"sqlite:///{aligned.first.store.uri}/mlflow.db"
    client = MlflowClient(uri, uri)
    runs = client.search_runs([client.get_experiment_by_name("brainstacks").experiment_id])
    (run,) = [run for run in runs if run.info.run_name == "aa_r2"]
    assert run.info.status == "FINISHED"
    figures = [file.path for file in client.list_artifacts(run.info.run_id, "figures")]
    assert figures
    assert len(client.get_metric_history(run.info.run_id, "preferred")) == 4  # a point a step
    (version,) = [one for one in client.search_model_versions("name='tiny-aa'") if one.run_id == run.info.run_id]
    assert "**" in version.description


def test_a_round_that_is_taken_back_leaves_all_else_as_it_was(aligned):
    before, store = aligned.first, aligned.back.store
    assert {name: aligned.back.refs[name] for name in before.refs} == before.refs
    assert [ref.stack.name for ref, _ in store.stacks()] == ["aa_r1", "aa_r2", "bb_r1"]
    assert "bb_r3" not in {ref.stack.name for ref, _ in store.every_stack()}
    assert aligned.back.report["isolated_drift_max"] == 0
    assert store.verify().sound
    last = {record.domain: record for record in store.closings()}
    assert [outcome.objective for outcome in last["bb"].rounds] == ["sft"]
