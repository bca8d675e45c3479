"""What a campaign shows while it runs, and what of it MLflow accepts."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bs_cluster.config.schema import CampaignConfig
from bs_cluster.errors import RegistryError, RegistryUnavailable
from bs_cluster.records import StackId
from bs_cluster.registry import Registry, wording

CHAT = StackId("chat", 1)


def test_a_campaign_is_opened_once_and_found_again(registry, client, uri):
    config = CampaignConfig.model_validate(
        {"campaign": "demo", "domains": [{"name": "chat", "sources": [{"kind": "embedded", "name": "chat"}]}]}
    )
    registry.open_campaign(config.model_dump())
    Registry(uri, "demo", "brainstacks").open_campaign(config.model_dump())
    (run,) = client.search_runs(["1"])
    assert run.info.run_name == "demo"
    assert run.data.params["data.max_length"] == "512"
    assert "embedded" in run.data.params["domains.chat.sources.chat.kind"]


def test_a_changed_parameter_is_shown_beside_the_first(registry, client):
    registry.open_campaign({"workers": 2, "rank": 16})
    registry.open_campaign({"workers": 4, "rank": 16, "new": 1})
    (run,) = client.search_runs(["1"])
    assert run.data.params == {"workers": "2", "rank": "16", "new": "1"}
    assert run.data.tags["changed.workers"] == "4"


def test_a_round_is_a_child_of_its_campaign_and_found_again(registry, client, uri):
    registry.open_campaign({})
    registry.round_started(CHAT, {"steps": 10})
    registry.log_metrics(CHAT, 1, {"loss": 2.0})
    later = Registry(uri, "demo", "brainstacks")
    later.round_started(CHAT, {"steps": 10})
    later.log_metrics(CHAT, 2, {"loss": 1.0})
    campaign, chat = sorted(client.search_runs(["1"]), key=lambda run: run.info.start_time)
    assert chat.data.tags["mlflow.parentRunId"] == campaign.info.run_id
    assert chat.info.status == "RUNNING"
    assert [point.value for point in client.get_metric_history(chat.info.run_id, "loss")] == [2.0, 1.0]


def test_the_report_and_its_figures_arrive(registry, client, tmp_path):
    registry.open_campaign({})
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.json").write_text(
        json.dumps({"loss": {"routed": {"chat": 1.5}}, "router": {"regret": 0.02}, "stacks": [1], "campaign": "demo"})
    )
    (report / "report.md").write_text("# Report\n" + "x" * 10_000)
    (report / "loss.png").write_bytes(b"png")
    registry.log_report(report)
    registry.log_figures(None, report)
    (run,) = client.search_runs(["1"])
    assert run.data.metrics == {"report/loss/routed/chat": 1.5, "report/router/regret": 0.02}
    assert run.data.tags["mlflow.note.content"].startswith("# Report")
    assert run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run.info.run_id, "report")} == {
        "report/report.json",
        "report/report.md",
        "report/loss.png",
    }
    assert (tmp_path / "mlartifacts").is_dir()


def test_a_database_that_was_wiped_meanwhile_is_found_anew(registry, client, migrated):
    registry.open_campaign({})
    registry.log_metrics(CHAT, 1, {"loss": 2.0})
    shutil.copy(migrated, registry.tracking_uri.removeprefix("sqlite:///"))
    with pytest.raises(RegistryUnavailable):
        registry.log_metrics(CHAT, 2, {"loss": 1.5})
    registry._connection.try_again()
    registry.log_metrics(CHAT, 3, {"loss": 1.0})
    assert {run.info.run_name for run in client.search_runs(["1"])} == {"demo", "chat_r1"}


def test_a_deleted_experiment_is_named_with_the_way_out(registry, client):
    registry.open_campaign({})
    client.delete_experiment("1")
    with pytest.raises(RegistryError, match="experiments restore -x 1"):
        Registry(registry.tracking_uri, "demo", "brainstacks").open_campaign({})


def test_a_relative_database_is_refused():
    with pytest.raises(RegistryError, match="sqlite:////"):
        Registry("sqlite:///mlflow.db", "demo", "brainstacks")


keys = st.text(min_size=1, max_size=300)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=7000) | st.lists(st.integers())


@given(st.dictionaries(keys, leaves | st.dictionaries(keys, leaves, max_size=3), max_size=4))
def test_flattened_parameters_fit_mlflow(params):
    for key, value in wording.flatten(params).items():
        assert len(key) <= wording.MAX_KEY
        assert len(value) <= wording.MAX_PARAM


def test_flattening_names_what_a_list_holds():
    assert wording.flatten({"a": {"b": 1, "c": []}, "domains": [{"name": "chat", "steps": 3}], "m": ["q", "k"]}) == {
        "a.b": "1",
        "a.c": "[]",
        "domains.chat.steps": "3",
        "m": '["q", "k"]',
    }


def test_history_lines_without_a_value_are_left_out():
    assert wording.parse_history('{"step": 4, "loss": 1.0, "val": null}\n', "chat_r1") == [(4, "loss", 1.0)]
