"""What a campaign shows while it runs, and what of it MLflow accepts."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.artifacts import download_artifacts

from bs_cluster.config.parse import parse_config
from bs_cluster.errors import RegistryError, RegistryUnavailable
from bs_cluster.records import StackId
from bs_cluster.registry import Registry, descriptions

CHAT = StackId("chat", 1)


def test_a_campaign_is_opened_once_with_what_differs_from_the_defaults_and_its_whole_config(
    registry, client, uri, settings
):
    config = settings(training={"max_rounds": 2}, sweep={"answer_rows": 40})
    registry.open_campaign(config)
    Registry(uri, "demo", "brainstacks").open_campaign(config)
    (run,) = client.search_runs(["1"])
    assert run.info.run_name == "demo"
    assert run.data.params == {
        "campaign": "demo",
        "training.max_rounds": "2",
        "sweep.answer_rows": "40",
        "domains.chat.sources.chat.kind": "embedded",
        "domains.math.sources.math.kind": "embedded",
    }
    path = download_artifacts(run_id=run.info.run_id, artifact_path="campaign.yaml", tracking_uri=uri)
    assert parse_config(Path(path).read_text()) == config


def test_a_changed_parameter_is_shown_beside_the_first(registry, client, settings):
    registry.open_campaign(settings(stack={"rank": 8}, training={"steps": 50}))
    registry.open_campaign(settings(training={"steps": 60, "max_rounds": 2}))
    (run,) = client.search_runs(["1"])
    assert run.data.params["training.steps"] == "50"
    assert run.data.params["training.max_rounds"] == "2"
    assert run.data.tags["changed.training.steps"] == "60"
    assert run.data.tags["changed.stack.rank"] == "16"  # the default again
    assert "changed.campaign" not in run.data.tags


def test_a_round_shows_the_hyperparameters_that_make_it(registry, client, settings):
    config = settings(training={"learning_rate": 2e-4})
    chat = config.domains[0].model_copy(update={"steps": 7})
    registry.round_started(CHAT, config.model_copy(update={"domains": (chat, config.domains[1])}))
    (run,) = client.search_runs(["1"], "tags.stack = 'chat_r1'")
    assert run.data.params["training.steps"] == "7"
    assert run.data.params["training.learning_rate"] == "0.0002"
    assert run.data.params["stack.rank"] == "16"


def test_a_round_is_a_child_of_its_campaign_and_found_again(registry, client, uri, settings):
    registry.open_campaign(settings())
    registry.round_started(CHAT, settings())
    registry.log_metrics(CHAT, 1, {"loss": 2.0})
    later = Registry(uri, "demo", "brainstacks")
    later.round_started(CHAT, settings())
    later.log_metrics(CHAT, 2, {"loss": 1.0})
    campaign, chat = sorted(client.search_runs(["1"]), key=lambda run: run.info.start_time)
    assert chat.data.tags["mlflow.parentRunId"] == campaign.info.run_id
    assert chat.info.status == "RUNNING"
    assert [point.value for point in client.get_metric_history(chat.info.run_id, "loss")] == [2.0, 1.0]


def test_figures_and_the_report_folder_arrive(registry, client, tmp_path, settings):
    registry.open_campaign(settings())
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.json").write_text("{}")
    (report / "loss.png").write_bytes(b"png")
    registry.log_report(report)
    registry.log_figures(None, report)
    (run,) = client.search_runs(["1"])
    for folder in ("report", "figures"):
        listed = {file.path for file in client.list_artifacts(run.info.run_id, folder)}
        assert listed == {f"{folder}/report.json", f"{folder}/loss.png"}
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_round_begun_again_shows_no_step_twice(registry, client, uri, settings):
    """Its process was killed after step 2; the next one trains the round from its first step."""
    registry.round_started(CHAT, settings())
    for step in (1, 2):
        registry.log_metrics(CHAT, step, {"loss": 3.0 - step})
    later = Registry(uri, "demo", "brainstacks")
    later.round_started(CHAT, settings())
    for step in (1, 2, 3):
        later.log_metrics(CHAT, step, {"loss": 3.0 - step, "selection_loss": 1.0})
    (run,) = client.search_runs(["1"], "tags.stack = 'chat_r1'")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "selection_loss")] == [1, 2, 3]


class TestStatus:
    """Right after a run's end, whatever the end was."""

    def statuses(self, client) -> dict[str, str]:
        return {run.info.run_name: run.info.status for run in client.search_runs(["1"])}

    @pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
    def test_an_end_is_shown_on_the_campaign_and_on_the_round_under_way(self, registry, client, status, settings):
        registry.open_campaign(settings())
        registry.round_started(CHAT, settings())
        assert self.statuses(client) == {"demo": "RUNNING", "chat_r1": "RUNNING"}
        registry.end_campaign(status)
        assert self.statuses(client) == {"demo": status, "chat_r1": status}

    def test_a_finished_campaign_run_again_is_finished_again(self, registry, client, uri, settings):
        registry.open_campaign(settings())
        registry.end_campaign("FINISHED")
        again = Registry(uri, "demo", "brainstacks")
        again.open_campaign(settings())
        assert self.statuses(client) == {"demo": "RUNNING"}
        again.end_campaign("FINISHED")
        assert self.statuses(client) == {"demo": "FINISHED"}

    def test_a_failed_round_that_goes_on_is_running_again(self, registry, client, uri, settings):
        registry.open_campaign(settings())
        registry.round_started(CHAT, settings())
        registry.end_campaign("KILLED")
        again = Registry(uri, "demo", "brainstacks")
        again.open_campaign(settings())
        assert self.statuses(client) == {"demo": "RUNNING", "chat_r1": "KILLED"}
        again.round_started(CHAT, settings())
        assert self.statuses(client) == {"demo": "RUNNING", "chat_r1": "RUNNING"}

    def test_the_next_campaign_closes_one_whose_process_was_killed(self, registry, client, uri, settings):
        """The tag names this process, which lives; another's campaign is closed only once its process is gone."""
        registry.open_campaign(settings())
        registry.round_started(CHAT, settings())
        Registry(uri, "second", "brainstacks").open_campaign(settings("second"))
        assert self.statuses(client) == {"demo": "RUNNING", "chat_r1": "RUNNING", "second": "RUNNING"}
        (campaign,) = client.search_runs(["1"], "tags.kind = 'campaign' and tags.campaign = 'demo'")
        host, pid, started = campaign.data.tags["owner"].split()
        client.set_tag(campaign.info.run_id, "owner", f"elsewhere {pid} {started}")
        Registry(uri, "second", "brainstacks").open_campaign(settings("second"))
        assert self.statuses(client)["demo"] == "RUNNING"  # nobody here can tell
        client.set_tag(campaign.info.run_id, "owner", f"{host} {pid} {int(started) - 5}")  # the id was given again
        Registry(uri, "second", "brainstacks").open_campaign(settings("second"))
        assert self.statuses(client) == {"demo": "KILLED", "chat_r1": "KILLED", "second": "RUNNING"}


def test_a_database_that_was_wiped_meanwhile_is_found_anew(registry, client, migrated, settings):
    registry.open_campaign(settings())
    registry.log_metrics(CHAT, 1, {"loss": 2.0})
    shutil.copy(migrated, registry.tracking_uri.removeprefix("sqlite:///"))
    with pytest.raises(RegistryUnavailable):
        registry.log_metrics(CHAT, 2, {"loss": 1.5})
    registry._connection.try_again()
    registry.log_metrics(CHAT, 3, {"loss": 1.0})
    assert {run.info.run_name for run in client.search_runs(["1"])} == {"demo", "chat_r1"}


def test_a_deleted_experiment_is_named_with_the_way_out(registry, client, settings):
    registry.open_campaign(settings())
    client.delete_experiment("1")
    with pytest.raises(RegistryError, match="experiments restore -x 1"):
        Registry(registry.tracking_uri, "demo", "brainstacks").open_campaign(settings())


def test_a_relative_database_is_refused():
    with pytest.raises(RegistryError, match="sqlite:////"):
        Registry("sqlite:///mlflow.db", "demo", "brainstacks")


keys = st.text(min_size=1, max_size=300)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=7000) | st.lists(st.integers())


@given(st.dictionaries(keys, leaves | st.dictionaries(keys, leaves, max_size=3), max_size=4))
def test_flattened_parameters_fit_mlflow(params):
    for key, value in descriptions.flatten(params).items():
        assert len(key) <= descriptions.MAX_KEY
        assert len(value) <= descriptions.MAX_PARAM


def test_flattening_names_what_a_list_holds():
    assert descriptions.flatten(
        {"a": {"b": 1, "c": []}, "domains": [{"name": "chat", "steps": 3}], "m": ["q", "k"]}
    ) == {
        "a.b": "1",
        "a.c": "[]",
        "domains.chat.steps": "3",
        "m": '["q", "k"]',
    }


def test_history_lines_without_a_value_are_left_out():
    assert descriptions.parse_history('{"step": 4, "loss": 1.0, "val": null}\n', "chat_r1") == [(4, "loss", 1.0)]


def test_an_evaluation_shows_its_newest_values_at_its_bundle(registry, client, tmp_path):
    """A rerun with more rows must be seen, though the step is the same."""
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "evaluation.md").write_text("## Public tasks")
    key = "evaluation/arc_easy/acc/routed"
    for value in (0.25, 0.5):
        registry.log_evaluation(2, {key: value}, folder)
    (run,) = client.search_runs([client.get_experiment_by_name("brainstacks").experiment_id])
    assert run.data.metrics == {key: 0.5}
    assert [point.step for point in client.get_metric_history(run.info.run_id, key)] == [2, 2]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "evaluation")] == ["evaluation/evaluation.md"]
