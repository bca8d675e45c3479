"""What MLflow's evaluation views have of a bundle: its rows as the store has them, once, whatever else happens."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.tracing.client import TracingClient
from tiny_history import bundle_manifest

from bs_cluster.answer_file import ANSWERS, read_answers
from bs_cluster.promotion import LOSSES, read_losses
from bs_cluster.registry import Registry, evaluations

OWNERS = {"chat": 1.0, "math": 2.0}
ANSWERED = 3  # rows of each owner


@pytest.fixture
def judged(store):
    """The store with two bundles more that were judged on the same rows: of each owner, bundle 2 is right on two of
    three, bundle 3 on all."""
    for number in (2, 3):
        served = {owner: mean - 0.1 * number for owner, mean in OWNERS.items()}
        store.commit_bundle(bundle_manifest(store, number, served=served, answered=ANSWERED))
    return store


def rows_of(client: MlflowClient, number: int) -> tuple[str, list]:
    """Id of the run of a bundle's rows, and its traces."""
    (run,) = client.search_runs(["1"], f"tags.kind = 'evaluation' and tags.bundle = '{number}'")
    return run.info.run_id, client.search_traces(locations=["1"], run_id=run.info.run_id, max_results=500)


def told(trace) -> dict:
    """Everything that a trace says, without what follows from its run's id and times."""
    return {
        "row": trace.info.client_request_id,
        "owner": trace.info.tags["owner"],
        "prompt": trace.info.request_preview,
        "answer": trace.info.response_preview,
        "assessments": sorted((a.name, (a.expectation or a.feedback).value) for a in trace.info.assessments),
        "spans": sorted((span.name, span.inputs, span.outputs) for span in trace.data.spans),
    }


def everything(client: MlflowClient) -> list:
    """All that there is, so that nothing which is there twice is missed."""
    runs = client.search_runs(["1"], "tags.kind = 'evaluation'")
    traces = client.search_traces(locations=["1"], max_results=500)
    return [
        sorted((run.info.run_name, run.info.status, sorted(run.data.metrics.items())) for run in runs),
        sorted(len(run.inputs.model_inputs) for run in runs),
        sorted(json.dumps(told(trace), sort_keys=True) for trace in traces),
        [len(client.get_metric_history(run.info.run_id, key)) for run in runs for key in run.data.metrics],
        [table_of(client, run.info.run_id) for run in sorted(runs, key=lambda run: run.info.run_name)],
    ]


def table_of(client: MlflowClient, run_id: str) -> dict:
    """By column. MLflow finds a run's tables by a tag."""
    assert {"path": evaluations.TABLE, "type": "table"} in json.loads(
        client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    )
    table = json.loads(Path(client.download_artifacts(run_id, evaluations.TABLE)).read_text())
    return dict(zip(table["columns"], map(list, zip(*table["data"], strict=True)), strict=True))


def test_a_row_says_what_the_store_says(registry, judged, client):
    registry.sync(judged)
    for number in (2, 3):
        _, traces = rows_of(client, number)
        _, _, manifest = judged.bundles()[number - 1]
        losses = read_losses(judged.get_bytes(manifest.file(LOSSES).sha256))
        answers = {(a.row_id, a.mode): a for a in read_answers(judged.get_bytes(manifest.file(ANSWERS).sha256))}
        assert len(traces) == len(answers) / 2 == ANSWERED * len(OWNERS)
        for trace in traces:
            row = trace.info.client_request_id
            base, routed = answers[row, "base"], answers[row, "routed"]
            nll = {mode: losses.nll[mode][losses.row_ids.index(row)] / 10 for mode in ("base", "routed")}
            assert told(trace) == {
                "row": row,
                "owner": routed.owner,
                "prompt": routed.prompt,
                "answer": routed.text,
                "assessments": [
                    ("correct", routed.right),
                    ("correct_base", base.right),
                    ("expected_response", routed.reference),
                    ("fires", "chat"),
                    ("loss", nll["routed"]),
                    ("loss_base", nll["base"]),
                ],
                "spans": [
                    ("base", base.prompt, base.text),
                    ("routed", routed.prompt, routed.text),
                ],
            }


def test_the_table_has_every_row_and_words_where_they_were_asked_for(registry, judged, client):
    registry.sync(judged)
    run_id, _ = rows_of(client, 3)
    _, _, manifest = judged.bundles()[-1]
    losses = read_losses(judged.get_bytes(manifest.file(LOSSES).sha256))
    table = table_of(client, run_id)
    assert sorted(table["row"]) == sorted(losses.row_ids)
    place = [losses.row_ids.index(row) for row in table["row"]]
    assert table["owner"] == [losses.owners[i] for i in place]
    assert table["loss/routed"] == [losses.nll["routed"][i] / 10 for i in place]
    assert table["gate/math"] == [losses.gates["math"][i] for i in place]
    assert all(table["prompt"][: ANSWERED * len(OWNERS)])
    right = {row: value for row, value in zip(table["row"], table["correct/routed"], strict=True) if value is not None}
    assert right == {f"{owner}-{place}": True for owner in OWNERS for place in range(ANSWERED)}


def test_rows_of_two_bundles_meet_by_their_prompt(registry, judged, client):
    """MLflow pairs two runs' traces by what the traces were asked."""
    registry.sync(judged)
    (_, second), (_, third) = rows_of(client, 2), rows_of(client, 3)
    assert [t.info.request_preview for t in second] == [t.info.request_preview for t in third]
    assert {t.info.trace_id for t in second}.isdisjoint(t.info.trace_id for t in third)


def test_a_version_a_run_and_its_rows_lead_to_each_other(registry, judged, client):
    registry.sync(judged)
    run_id, traces = rows_of(client, 3)
    version, run = client.get_model_version("demo", "3"), client.get_run(run_id)
    assert run.info.run_name == "demo bundle 3"
    assert run.info.status == "FINISHED"
    assert version.tags["evaluation"] == run_id
    (model,) = client.search_logged_models(["1"], "name = 'demo_bundle_3'")
    assert [shown.model_id for shown in run.inputs.model_inputs] == [model.model_id]
    assert {trace.info.trace_metadata["mlflow.modelId"] for trace in traces} == {model.model_id}
    second, _ = rows_of(client, 2)
    assert f"evaluation-runs?selectedRunUuid={run_id}&compareToRunUuid={second}" in version.description
    assert "#/models/demo/versions/3" in run.data.tags["mlflow.note.content"]


def test_a_bundle_that_was_not_judged_has_none(registry, judged, client):
    registry.sync(judged)
    assert client.search_runs(["1"], "tags.kind = 'evaluation' and tags.bundle = '1'") == []
    assert "evaluation-runs" not in client.get_model_version("demo", "1").description


def test_syncing_again_adds_nothing(registry, judged, client, uri, monkeypatch):
    registry.sync(judged)
    before = everything(client)
    monkeypatch.setattr(TracingClient, "start_trace", lambda *_: pytest.fail("a row was told again"))
    for again in (registry, Registry(uri, "demo", "brainstacks")):
        again.sync(judged)
        assert everything(client) == before


@pytest.mark.parametrize("call", ["log_inputs", "start_trace", "log_spans", "set_terminated"])
def test_killed_in_the_middle_the_next_sync_finishes_and_nothing_is_there_twice(judged, wipe, monkeypatch, call):
    """The process is gone after a call that took effect: of a row, of all, of the last."""

    class Killed(BaseException):
        pass

    undisturbed, cut = wipe(), wipe()
    Registry(undisturbed, "demo", "brainstacks").sync(judged)
    owner = TracingClient if hasattr(TracingClient, call) else MlflowClient
    real, runs = getattr(owner, call), []

    def killed(self, *args, **kwargs):
        real(self, *args, **kwargs)
        runs.append(args)
        found = MlflowClient(cut, cut).search_runs(["1"], "tags.kind = 'evaluation'")
        if found and len(runs) > 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, killed)
        with pytest.raises(Killed):
            Registry(cut, "demo", "brainstacks").sync(judged)
    Registry(cut, "demo", "brainstacks").end_campaign("KILLED")  # what the next command of the campaign does first
    Registry(cut, "demo", "brainstacks").sync(judged)
    assert everything(MlflowClient(cut, cut)) == everything(MlflowClient(undisturbed, undisturbed))


def test_a_run_of_rows_that_was_deleted_by_hand_stays_away(registry, judged, client, uri):
    registry.sync(judged)
    run_id, _ = rows_of(client, 2)
    client.delete_run(run_id)
    Registry(uri, "demo", "brainstacks").sync(judged)
    assert len(client.search_runs(["1"], "tags.kind = 'evaluation'")) == 1
    assert run_id not in client.get_model_version("demo", "3").description


def test_many_rows_of_an_owner_are_shown_in_words_up_to_a_number(judged, monkeypatch):
    monkeypatch.setattr(evaluations, "WORDS", 2)
    _, _, manifest = judged.bundles()[-1]
    losses = read_losses(judged.get_bytes(manifest.file(LOSSES).sha256))
    rows = evaluations.rows_of(losses, read_answers(judged.get_bytes(manifest.file(ANSWERS).sha256)))
    assert len(rows) == len(losses.row_ids)
    assert [row.id for row in rows if row.answers] == ["chat-0", "chat-1", "math-0", "math-1"]
