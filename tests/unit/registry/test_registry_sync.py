"""Laws of the mirror: MLflow ends up showing what the store holds, once, whatever happened on the way."""

import json
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from tiny_history import bundle_manifest, commit_round, domain_record, stack_manifest, write_files

from bs_cluster.errors import RegistryError, RegistryUnavailable
from bs_cluster.records import StackId
from bs_cluster.registry import Registry, pages
from bs_cluster.store import Store
from bs_cluster.store.refs import Refs


def without_ids(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{32}\b", "ID", text)


def shown(client: MlflowClient) -> dict:
    """Everything that a person can see of the campaign, without ids and times."""
    (experiment,) = client.search_experiments(filter_string="name = 'brainstacks'")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_id: run.info.run_name for run in runs}
    versions = client.search_model_versions("tags.campaign = 'demo'")
    return {
        "runs": sorted(
            (
                run.info.run_name,
                run.info.status,
                names.get(run.data.tags.get("mlflow.parentRunId")),
                sorted((key, value) for key, value in run.data.tags.items() if not key.startswith("mlflow.")),
                without_ids(run.data.tags.get("mlflow.note.content", "")),
                sorted(run.data.params.items()),
                {key: curve(client, run.info.run_id, key) for key in run.data.metrics},
                sorted(data.dataset.digest for data in run.inputs.dataset_inputs),
            )
            for run in runs
        ),
        "versions": sorted(
            (v.name, int(v.version), names[v.run_id], without_ids(v.description), sorted(v.tags.items()))
            for v in versions
        ),
        "aliases": {
            model.name: {k: int(v) for k, v in model.aliases.items()} for model in client.search_registered_models()
        },
        "texts": {model.name: without_ids(model.description) for model in client.search_registered_models()},
        "logged": sorted(
            (
                model.name,
                str(model.status),
                sorted(model.params.items()),
                sorted((metric.key, metric.step, metric.value, metric.dataset_name or "") for metric in model.metrics),
            )
            for model in client.search_logged_models([experiment.experiment_id])
        ),
    }


def curve(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def run_of(client: MlflowClient, stack: str):
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.campaign = 'demo' and tags.stack = '{stack}'")
    return run


def test_sync_shows_what_the_store_holds(registry, store, client):
    report = registry.sync(store)
    assert [stack.name for stack in report.stacks] == ["chat_r1", "chat_r2", "math_r1"]
    assert report.rejected == (StackId("math", 2),)
    assert (report.domains, report.bundles) == (("chat", "math"), (1,))
    picture = shown(client)
    assert [(name, status, parent) for name, status, parent, *_ in picture["runs"]] == [
        ("chat_r1", "FINISHED", "demo"),
        ("chat_r2", "FINISHED", "demo"),
        ("demo", "RUNNING", None),
        ("math_r1", "FINISHED", "demo"),
        ("math_r2", "FINISHED", "demo"),
    ]
    assert [version[:3] for version in picture["versions"]] == [
        ("demo", 1, "demo"),
        ("demo-chat", 1, "chat_r1"),
        ("demo-chat", 2, "chat_r2"),
        ("demo-math", 1, "math_r1"),
    ]
    assert picture["aliases"] == {
        name: {"champion": n} for name, n in [("demo", 1), ("demo-chat", 2), ("demo-math", 1)]
    }


def test_syncing_again_changes_nothing(registry, store, client, uri):
    registry.sync(store)
    before = shown(client)
    for again in (registry, Registry(uri, "demo", "brainstacks")):
        report = again.sync(store)
        assert (report.stacks, report.rejected, report.domains, report.bundles) == ((), (), (), ())
        assert shown(client) == before


def test_a_wiped_mlflow_is_rebuilt_curves_included(registry, store, client, wipe):
    registry.sync(store)
    before = shown(client)
    uri = wipe()
    Registry(uri, "demo", "brainstacks").sync(store)
    assert shown(MlflowClient(uri, uri)) == before
    assert curve(client, run_of(client, "chat_r1").info.run_id, "loss") == [(0, 3.0), (1, 1.5), (2, 1.0)]


# In the order in which a sync comes to them.
CALLS = (
    "create_run",
    "log_text",
    "log_batch",
    "set_terminated",
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "finalize_logged_model",
    "create_registered_model",
    "create_model_version",
    "log_inputs",
    "set_logged_model_tags",
    "set_registered_model_alias",
    "set_model_version_tag",
    "log_artifacts",
    "update_registered_model",
    "update_model_version",
)


def test_interrupted_anywhere_the_next_sync_finishes(answering, tmp_path, wipe, monkeypatch):
    """MLflow is cut off at each kind of call in turn, which took effect though the answer got lost; what is left to do
    is a sync's own knowledge, so one MLflow is brought on from cut to cut."""
    store = Store(str(tmp_path / "store"), "demo")
    commit_round(store, tmp_path / "rounds", "chat", 1)
    store.close_domain(domain_record(store, "chat", rejected=1))
    store.commit_bundle(bundle_manifest(store))
    store.promote(1, "champion", "guarded", "the first bundle")
    undisturbed, cut = wipe(), wipe()
    Registry(undisturbed, "demo", "brainstacks").sync(store)
    for name in CALLS:
        real = getattr(MlflowClient, name)

        def cut_off(self, *args, _real=real, **kwargs):
            _real(self, *args, **kwargs)
            raise ConnectionResetError

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, name, cut_off)
            with pytest.raises(RegistryUnavailable):
                Registry(cut, "demo", "brainstacks").sync(store)
    Registry(cut, "demo", "brainstacks").sync(store)
    assert shown(MlflowClient(cut, cut)) == shown(MlflowClient(undisturbed, undisturbed))


def test_live_curves_and_the_replay_agree(registry, store, client, settings):
    """Two of three points were logged live, before MLflow went away: the replay adds the third alone."""
    registry.open_campaign(settings())
    registry.round_started(StackId("chat", 1), settings())
    registry.log_metrics(StackId("chat", 1), 0, {"loss": 3.0, "lr": 1e-4})
    registry.log_metrics(StackId("chat", 1), 1, {"loss": 1.5})
    registry.sync(store)
    run = run_of(client, "chat_r1")
    points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(points) == [(0, 3.0), (1, 1.5), (2, 1.0)]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "lr")] == [0, 1, 2]
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("stack", ["chat_r1", "math_r2"])  # committed, and turned away
def test_a_round_told_of_only_after_its_end_was_mirrored_stays_finished_with_one_point_a_step(
    registry, store, client, uri, settings, stack
):
    """Events lag where MLflow is slow, and a sync mirrors the store as it is by then."""
    for told in (registry, Registry(uri, "demo", "brainstacks")):
        registry.sync(store)
        told.round_started(StackId.parse(stack), settings())
        for step in (0, 1, 2):
            told.log_metrics(StackId.parse(stack), step, {"loss": 3.0 / (step + 1)})
        run = run_of(client, stack)
        assert run.info.status == "FINISHED"
        assert curve(client, run.info.run_id, "loss") == [(0, 3.0), (1, 1.5), (2, 1.0)]


def test_a_round_left_running_after_its_commit_is_finished_by_the_next_sync(registry, store, client):
    registry.sync(store)
    client.update_run(run_of(client, "chat_r1").info.run_id, "KILLED")
    registry.sync(store)
    assert run_of(client, "chat_r1").info.status == "FINISHED"


def test_the_report_of_the_newest_bundle_is_shown_whoever_died_before(registry, store, client):
    registry.sync(store)
    (run,) = client.search_runs(["1"], "tags.kind = 'campaign'")
    assert "# Report 1" in run.data.tags["mlflow.note.content"]
    assert len(run.data.tags["mlflow.note.content"]) == 8000
    files = {file.path for file in client.list_artifacts(run.info.run_id, "report")}
    assert files == {"report/report.json", "report/report.md"}
    store.commit_bundle(bundle_manifest(store, 2))
    registry.sync(store)
    assert "# Report 2" in client.get_run(run.info.run_id).data.tags["mlflow.note.content"]


def test_a_long_curve_arrives_whole(registry, client, tmp_path):
    store = Store(str(tmp_path / "store"), "demo")
    commit_round(store, tmp_path / "rounds", "chat", 1, steps=1500)
    registry.sync(store)
    assert len(client.get_metric_history(run_of(client, "chat_r1").info.run_id, "loss")) == 1500


def test_a_version_is_found_by_its_digest_and_says_where_it_lies(registry, store, client, tmp_path):
    registry.sync(store)
    for ref, manifest in store.stacks():
        (version,) = client.search_model_versions(f"tags.manifest = '{ref.manifest}'")
        assert version.tags["round"] == str(ref.stack.round)
        assert f"{manifest.metrics['val_after']:.4f}" in version.description
        (model,) = client.search_logged_models(
            [client.get_run(version.run_id).info.experiment_id], f"tags.manifest = '{ref.manifest}'"
        )
        metrics = {metric.key: metric.value for metric in model.metrics}
        names = {"val_before": "decision/val_before", "val_after": "decision/val_after", "rows": "decision/rows"}
        assert metrics == {names.get(name, name): value for name, value in manifest.metrics.items()}
        files = tmp_path / "downloaded" / ref.stack.name
        for name in ("manifest.json", "adapter_config.json", "weights.txt"):
            files.mkdir(parents=True, exist_ok=True)
            download_artifacts(f"{model.artifact_location}/{name}", dst_path=str(files))
        assert json.loads((files / "manifest.json").read_text()) == manifest.to_dict()
        assert ref.manifest in (files / "weights.txt").read_text()


def test_the_dataset_of_a_round_is_shown_with_its_counts(registry, store, client):
    registry.sync(store)
    for stack in ("math_r1", "math_r2"):
        (data,) = run_of(client, stack).inputs.dataset_inputs
        assert data.dataset.name == "math"
        assert json.loads(data.dataset.profile) == {"train": 30, "validation": 10}


def test_a_rejected_round_has_its_run_and_no_version(registry, store, client):
    registry.sync(store)
    run = run_of(client, "math_r2")
    assert run.data.tags["committed"] == "false"
    assert run.data.tags["reason"] == "no improvement"
    assert run.data.metrics["decision/val_after"] == 2.6
    assert len(client.search_model_versions("name = 'demo-math'")) == 1
    assert "no improvement" in client.get_registered_model("demo-math").description


def test_the_campaign_run_shows_how_domains_held_up(registry, store, client):
    registry.sync(store)
    (campaign,) = client.search_runs(["1"], "tags.kind = 'campaign'")
    assert curve(client, campaign.info.run_id, "validation/math/isolated") == [(1, 2.5)]
    assert campaign.data.metrics["curriculum/capacity/5"] == 0.4
    assert campaign.data.metrics["curriculum/energy_held/input"] == 0.95


def test_the_champion_bundle_answers(registry, store, uri):
    registry.sync(store)
    store.commit_bundle(bundle_manifest(store, 2))
    store.promote(2, "champion", "guarded", "better")
    assert registry.sync(store).bundles == (2,)
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/demo@champion")
    finally:
        mlflow.set_tracking_uri(previous)
    _, digest, _ = store.bundles()[-1]
    assert model.predict(["hello"]) == [f"{digest} in {store.uri}: hello"]


def test_an_alias_moved_by_hand_is_put_right(registry, store, client):
    registry.sync(store)
    client.set_registered_model_alias("demo-chat", "champion", "1")
    registry.sync(store)
    assert client.get_model_version_by_alias("demo-chat", "champion").version == 2


def test_a_version_copied_for_production_is_left_alone(registry, store, client):
    registry.sync(store)
    client.copy_model_version("models:/demo-chat/1", "production")
    registry.sync(store)
    assert client.get_registered_model("production").aliases == {}
    assert client.get_model_version_by_alias("demo-chat", "champion").version == 2


def test_campaigns_share_an_mlflow_without_mixing(registry, store, uri, client, tmp_path):
    registry.sync(store)
    before = shown(client)["versions"]
    other = Store(str(tmp_path / "store"), "demo2")
    commit_round(other, tmp_path / "rounds2", "chat", 1)
    Registry(uri, "demo2", "brainstacks").sync(other)
    assert shown(client)["versions"] == before
    assert [version.tags["campaign"] for version in client.search_model_versions("name = 'demo2-chat'")] == ["demo2"]
    with pytest.raises(RegistryError, match="demo2"):
        registry.sync(other)


def test_a_damaged_history_is_named(registry, tmp_path):
    store = Store(str(tmp_path / "store"), "demo")
    commit_round(store, tmp_path / "rounds", "chat", 1)
    folder = write_files(tmp_path / "bad")
    (folder / "history.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"loss": 2.0}\n')
    store.commit_stack(stack_manifest(store, folder, "chat", 2), folder)
    with pytest.raises(RegistryError, match="chat_r2, line 2"):
        registry.sync(store)


def test_away_costs_seconds_and_the_next_sync_drains(store, wipe, monkeypatch):
    """Nobody listens at the address: every call says so, quickly, and nothing is lost."""
    registry = Registry("http://127.0.0.1:9", "demo", "brainstacks")
    started = time.monotonic()
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:9 is away"):
        registry.sync(store)
    for _ in range(100):
        with pytest.raises(RegistryUnavailable):
            registry.log_metrics(None, 0, {"loss": 1.0})
    assert time.monotonic() - started < 5
    uri = wipe()
    Registry(uri, "demo", "brainstacks").sync(store)
    assert len(shown(MlflowClient(uri, uri))["versions"]) == 4


class TestPages:
    """What a person reads and follows."""

    @pytest.fixture
    def judged(self, store, tmp_path):
        """The store with a second, judged bundle that became champion in the place of the first."""
        store.commit_bundle(bundle_manifest(store, 2, served={"chat": 1.0, "math": 2.0}))
        store.promote(2, "champion", "guarded", "no group is served worse")
        return store

    def test_a_domains_table_has_every_round_with_links_and_says_who_is_champion(self, registry, judged, client):
        registry.sync(judged)
        lines = client.get_registered_model("demo-math").description.splitlines()
        second, first = (line for line in lines if "math_r" in line)
        assert first.startswith("| [1](#/models/demo-math/versions/1)")
        assert "3.0000 → **2.5000**" in first
        assert "[bundle 1](#/models/demo/versions/1), [bundle 2](#/models/demo/versions/2)" in first
        assert "**champion**: the newest" in first
        assert f"runs/{run_of(client, 'math_r1').info.run_id}" in first
        assert "rejected: no improvement" in second

    def test_versions_link_to_what_they_were_trained_beside_and_served_in(self, registry, judged, client):
        registry.sync(judged)
        text = client.get_model_version("demo-chat", "2").description
        assert "| trained beside&emsp; | [chat_r1](#/models/demo-chat/versions/1)" in text
        assert "| served in&emsp; | [bundle 1](#/models/demo/versions/1), [bundle 2]" in text
        assert "[chat_r2](#/models/demo-chat/versions/2)" in client.get_model_version("demo", "2").description

    def test_the_campaigns_model_says_who_is_served_and_why(self, registry, judged, client):
        registry.sync(judged)
        text = client.get_registered_model("demo").description
        assert "Served, as `champion`: bundle [2](#/models/demo/versions/2)" in text
        assert "**champion**: no group is served worse" in text
        assert "was champion: the first bundle" in text
        judged.promote(1, "champion", "rollback", "complaints")
        registry.sync(judged)
        assert "**champion**: complaints" in client.get_registered_model("demo").description
        assert "**champion**: complaints" in client.get_model_version("demo", "1").description

    def test_every_picture_is_there(self, registry, judged, client, tmp_path):
        registry.sync(judged)
        versions = client.search_model_versions("tags.campaign = 'demo'")
        texts = [model.description for model in client.search_registered_models()]
        texts += [version.description for version in versions]
        shown = re.findall(r"get-artifact\?path=([^&]+)&run_uuid=(\w+)", " ".join(texts))
        assert {path for path, _ in shown} == {"figures/curve.svg", "lineage/bundle_1.svg", "lineage/bundle_2.svg"}
        for path, run_id in set(shown):
            picture = Path(client.download_artifacts(run_id, path, str(tmp_path))).read_text()
            assert ElementTree.fromstring(picture).tag.endswith("svg")

    def test_a_long_history_fits_into_a_description_with_its_newest_rounds(self):
        rows = [[str(number), "a link " * 20] for number in range(100, 0, -1)]
        text = pages.page("before", pages.table(("version", "round"), rows), "after")
        assert len(text) <= 5000
        lines = text.splitlines()
        assert lines[4].startswith("| 100")
        assert lines[-3] == "| … | |"
        assert (lines[0], lines[-1]) == ("before", "after")


def test_every_number_has_one_name(registry, store, client):
    """No value of a run's is logged under two keys, and none of a key twice at a step."""
    store.commit_bundle(bundle_manifest(store, 2, served={"chat": 1.0, "math": 2.0}))
    registry.sync(store)
    for run in client.search_runs(["1"]):
        for key in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            assert len(steps) == len(set(steps)), (run.info.run_name, key)
    (campaign,) = client.search_runs(["1"], "tags.kind = 'campaign'")
    last = [key.rpartition("/")[2] for key in campaign.data.metrics]
    assert last.count("base") == 0  # measured again at every closing, and always the same
    assert curve(client, campaign.info.run_id, "regret") == [(1, 0.01), (2, 0.01)]


def test_versions_are_ranked_by_metrics_on_the_rows_that_they_were_judged_on(registry, store, client):
    store.commit_bundle(bundle_manifest(store, 2, served={"chat": 1.0, "math": 2.0}))
    store.commit_bundle(bundle_manifest(store, 3, served={"chat": 0.9, "math": 1.9}))
    registry.sync(store)
    best, *_ = client.search_logged_models(
        ["1"],
        "name LIKE 'chat_r%'",
        datasets=[{"dataset_name": "chat"}],
        order_by=[{"field_name": "metrics.decision/val_after", "ascending": True, "dataset_name": "chat"}],
    )
    assert best.name == "chat_r2"
    bundles = client.search_logged_models(["1"], datasets=[{"dataset_name": "demo sweep"}])
    assert {model.name for model in bundles} == {"demo_bundle_2", "demo_bundle_3"}
    assert len({metric.dataset_digest for model in bundles for metric in model.metrics}) == 1  # the same rows
    (campaign,) = client.search_runs(["1"], "tags.kind = 'campaign'")
    contexts = {data.dataset.name: data.tags[0].value for data in campaign.inputs.dataset_inputs}
    assert contexts == {"chat": "training", "math": "training", "demo sweep": "evaluation"}


def test_a_handful_of_tags_with_one_digest(registry, store, client):
    registry.sync(store)
    for version in client.search_model_versions("tags.campaign = 'demo'"):
        assert len(version.tags) <= 8
        assert [key for key, value in version.tags.items() if re.fullmatch(r"[0-9a-f]{64}", value)] == ["manifest"]
    for run in client.search_runs(["1"]):
        assert len([key for key in run.data.tags if not key.startswith("mlflow.")]) <= 8


def test_a_sync_reads_the_history_once(registry, store, monkeypatch):
    reads = []
    real = Refs.all
    monkeypatch.setattr(Refs, "all", lambda self: reads.append(1) or real(self))
    registry.sync(store)
    assert len(reads) == 1


def test_what_no_process_keeps_does_not_go_on_running(registry, store, client, settings):
    registry.sync(store)
    registry.settle()
    assert {run.info.status for run in client.search_runs(["1"])} == {"FINISHED"}
    registry.open_campaign(settings())
    registry.settle()  # its process is this one, and lives
    (campaign,) = client.search_runs(["1"], "tags.kind = 'campaign'")
    assert campaign.info.status == "RUNNING"
    host, pid, started = campaign.data.tags["owner"].split()
    client.set_tag(campaign.info.run_id, "owner", f"{host} {pid} {int(started) - 5}")
    registry.settle()
    assert client.get_run(campaign.info.run_id).info.status == "KILLED"
