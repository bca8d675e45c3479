"""A tiny campaign through ``jobs/outer_loop.py``: what it leaves behind, running it again, adding a domain to it."""

import dataclasses
import io
import json
import math
import re
import runpy
import signal
import sys
from pathlib import Path

import job
import mlflow
import pyarrow.parquet as pq
import pytest
import yaml
from forgery import better_losses, copy_of, forge
from mlflow import MlflowClient
from tiny import save_tiny_base

from bs_cluster.campaign.promote import bundle_losses
from bs_cluster.campaign.recompute import certificate_in
from bs_cluster.certificate import Certificate, summary
from bs_cluster.config.parse import to_yaml
from bs_cluster.promotion import write_losses
from bs_cluster.records import StackId
from bs_cluster.store import Store
from bs_cluster.store.bundle_config import bundle_config

pytestmark = [pytest.mark.slow, pytest.mark.ray]

KEYS = {
    *("campaign", "domains", "base", "stacks", "loss", "isolated_at_commit", "isolated_drift_max", "overlap"),
    *("capacity", "router", "sweep", "timing"),
}
MODES = ("base", "isolated", "parents", "ungated", "routed", "oracle")


def tracking_uri(store: Store) -> str:
    return f"sqlite:///{store.uri}/mlflow.db"


@pytest.fixture(scope="module")
def client(finished):
    return MlflowClient(tracking_uri(finished.store), tracking_uri(finished.store))


class TestStore:
    def test_is_sound(self, finished):
        assert finished.store.verify().sound

    def test_every_domain_is_closed_with_improving_rounds(self, finished):
        records = finished.store.domains()
        assert [record.domain for record in records] == ["aa", "bb"]
        for record in records:
            assert record.rounds[0].committed
            assert record.isolated < record.base_loss
            committed = [r for r in record.rounds if r.committed]
            assert all(r.val_before - r.val_after >= 0.002 for r in committed)

    def test_the_second_domain_knows_its_parents_and_its_basis(self, finished):
        manifests = {ref.stack: manifest for ref, manifest in finished.store.stacks()}
        later = manifests[StackId("bb", 1)]
        aa = [ref for ref, _ in finished.store.stacks() if ref.stack.domain == "aa"]
        assert list(later.parents) == aa
        assert list(later.context) == [ref.stack for ref in aa]
        assert later.basis is not None
        assert manifests[StackId("aa", 1)].basis is None

    def test_the_bundle_holds_all_of_it(self, finished):
        ((number, _, bundle),) = finished.store.bundles()
        assert number == 1
        assert list(bundle.stacks) == [ref for ref, _ in finished.store.stacks()]
        names = {entry.name for entry in bundle.files}
        assert names >= {
            "router.safetensors",
            "router.json",
            "campaign.yaml",
            "outcomes.parquet",
            "losses.parquet",
            "answers.parquet",
            "report.json",
        }

    def test_its_answers_are_those_the_report_counts(self, finished):
        ((_, _, bundle),) = finished.store.bundles()
        held = finished.store.get_bytes(bundle.file("answers.parquet").sha256)
        lines = pq.read_table(io.BytesIO(held)).to_pylist()
        modes = ("base", "isolated", "ungated", "routed", "oracle")
        assert sorted((line["owner"], line["mode"]) for line in lines) == sorted(
            (owner, mode) for owner in ("aa", "bb") for mode in modes for _ in range(3)
        )
        texts = {}  # of one row under the same gates there is one answer
        for line in lines:
            assert line["right"] == (line["text"].casefold() == line["reference"].casefold())
            assert texts.setdefault((line["row_id"], tuple(line["gates"])), line["text"]) == line["text"]
        told = finished.report["answers"]
        assert told["rows"] == {"aa": 3, "bb": 3, "all domains": 6, "all rows asked": 6}
        for mode in modes:
            right = sum(line["right"] for line in lines if line["mode"] == mode)
            assert told["right"][mode]["all domains"]["count"] == right
        assert [example["owner"] for example in told["examples"]] == ["aa", "bb"]


class TestReport:
    def test_has_every_key(self, finished):
        report = finished.report
        assert report.keys() >= KEYS
        assert report["campaign"] == "tiny"
        assert report["domains"] == ["aa", "bb"]
        assert {mode: set(report["loss"][mode]) for mode in MODES} == {mode: {"aa", "bb"} for mode in MODES}
        assert report["router"].keys() >= {"regret", "label_regret", "all_on_regret", "accuracy"}
        assert report["sweep"].keys() >= {"rows", "combinations", "rows_per_s"}
        wanted = {"domain", "round", "manifest", "val_before", "val_after", "committed"}
        assert all(row.keys() >= wanted for row in report["stacks"])

    def test_nothing_moved_to_the_bit(self, finished):
        assert finished.report["isolated_drift_max"] == 0
        assert finished.report["isolated_drift_rows"] == 16

    def test_losses_hang_together(self, finished):
        loss = finished.report["loss"]
        for domain in ("aa", "bb"):
            assert all(math.isfinite(loss[mode][domain]) for mode in MODES)
            floor = min(loss[mode][domain] for mode in ("base", "isolated", "parents", "ungated"))
            assert loss["oracle"][domain] <= floor + 1e-9
            assert loss["isolated"][domain] < loss["base"][domain]

    def test_domains_claim_other_directions(self, finished):
        overlap = finished.report["overlap"]
        assert overlap["aa"]["aa"] == pytest.approx(1, abs=1e-4)
        assert overlap["aa"]["bb"] < 1e-6

    def test_sweep_counts_every_row_and_combination(self, finished):
        assert finished.report["sweep"]["rows"] == 20
        assert finished.report["sweep"]["combinations"] == 4

    def test_is_beside_the_store_in_words_and_figures(self, finished):
        folder = finished.config.parent / "store" / "tiny" / "report"
        assert (folder / "report.md").read_text()
        assert list(folder.rglob("*.png"))

    def test_a_person_saw_it_happen(self, finished):
        out = finished.job.out
        for words in ("aa -> bb", "2 workers load", "aa_r1", "committed", "closed", "2 evaluators load", "bundle"):
            assert words in out
        assert "Traceback" not in out + finished.job.err
        assert "\x1b" not in out + finished.job.err


class TestMlflow:
    def test_a_campaign_run_and_a_child_run_with_curves_per_round(self, finished, client):
        experiment = client.get_experiment_by_name("brainstacks")
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in runs if run.data.tags["kind"] == "campaign"]
        assert parent.info.status == "FINISHED"
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        rounds = {r.stack.name for record in finished.store.domains() for r in record.rounds}
        names = {run.info.run_name for run in children}
        assert {name for name in rounds if any(name in label for label in names)} == rounds
        for run in children:
            assert run.info.status == "FINISHED"
            assert len(client.get_metric_history(run.info.run_id, "loss")) == 6
            assert client.get_metric_history(run.info.run_id, "selection_loss")

    def test_the_rows_of_the_bundle_are_in_the_evaluation_views(self, finished, client):
        experiment = client.get_experiment_by_name("brainstacks")
        (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'evaluation'")
        traces = client.search_traces(locations=[experiment.experiment_id], run_id=run.info.run_id, max_results=500)
        _, _, bundle = finished.store.bundles()[-1]
        held = pq.read_table(io.BytesIO(finished.store.get_bytes(bundle.file("answers.parquet").sha256))).to_pylist()
        routed = {answer["row_id"]: answer["text"] for answer in held if answer["mode"] == "routed"}
        assert {trace.info.client_request_id: trace.info.response_preview for trace in traces} == routed

    def test_a_version_per_stack_with_the_newest_as_champion(self, finished, client):
        for domain in ("aa", "bb"):
            held = {ref.manifest for ref, _ in finished.store.stacks() if ref.stack.domain == domain}
            versions = client.search_model_versions(f"name='tiny-{domain}'")
            assert sorted(version.tags["manifest"] for version in versions) == sorted(held)
            champion = client.get_model_version_by_alias(f"tiny-{domain}", "champion")
            assert int(champion.tags["round"]) == max(int(version.tags["round"]) for version in versions)

    def test_the_champion_answers(self, finished, client):
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(tracking_uri(finished.store))
        try:
            model = mlflow.pyfunc.load_model("models:/tiny@champion")
            (answer, other) = model.predict(["aa alpha1", "bb beta2"])
        finally:
            mlflow.set_tracking_uri(before)
        assert isinstance(answer["completion"], str)
        assert set(answer["gates"]) >= {"aa", "bb"}
        assert all(0 <= weight <= 1 for found in (answer, other) for weight in found["gates"].values())

    def test_the_report_is_there_too(self, finished, client):
        experiment = client.get_experiment_by_name("brainstacks")
        (parent,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'tiny'")
        assert {file.path for file in client.list_artifacts(parent.info.run_id, "report")} >= {"report/report.json"}


class TestAgain:
    def test_nothing_is_left_to_do(self, again):
        done, _ = again
        assert done.code == 0
        assert "nothing left to do" in done.out
        assert "training begins" not in done.out

    def test_it_is_quick(self, again, finished):
        done, _ = again
        assert done.seconds < finished.job.seconds / 2

    def test_nothing_was_committed(self, again, finished):
        _, refs_after = again
        assert refs_after == finished.refs


class TestRefused:
    def test_a_config_with_typos_before_anything_starts(self, finished, tmp_path):
        settings = yaml.safe_load(finished.config.read_text())
        settings["training"]["step"] = settings["training"].pop("steps")
        settings["domains"][0]["nam"] = settings["domains"][0].pop("name")
        done = job.run(job.write_config(tmp_path / "typos.yaml", settings), RAY_TMPDIR=str(tmp_path))
        assert done.code == 2
        assert "training.step" in done.err
        assert "steps" in done.err
        assert "Traceback" not in done.err
        assert done.out == ""
        assert [path.name for path in tmp_path.iterdir()] == ["typos.yaml"]  # where Ray would have left its session

    def test_another_base_for_a_campaign_begun(self, run, again, finished):
        done = run(finished.config, "base.quantization=none", "base.cache_dequantized=false")
        assert done.code == 2
        assert "base.quantization" in done.err
        assert "was begun" in done.err
        assert "Traceback" not in done.err


class TestStopped:
    def test_it_ends_in_order_and_says_how_to_go_on(self, stopped):
        assert stopped.code == 128 + signal.SIGTERM
        assert stopped.log.rstrip().endswith("stopped by SIGTERM; run the same command to go on")
        assert "Traceback" not in stopped.log

    def test_mlflow_says_what_was_stopped(self, stopped):
        not_finished = {name: status for name, status in stopped.statuses.items() if status != "FINISHED"}
        assert not_finished == {"tiny": "KILLED", "cc_r1": "KILLED"}


class TestGrown:
    def test_completions_with_no_room_are_not_asked(self, grown):
        answers = grown.report["answers"]
        assert set(answers["unasked"]) == {"cc"}  # its completions are twice as long
        assert "longer than 16 tokens" in answers["unasked"]["cc"]

    def test_only_the_new_domain_is_trained(self, stopped, grown):
        # One that had a step to go when its job was told to stop may have been committed all the same.
        begun = re.findall(r"(\w+)_r\d +training begins", stopped.log + grown.job.out)
        assert set(begun) == {"cc"}

    def test_what_was_committed_is_as_it_was_byte_for_byte(self, grown, finished):
        assert {name: grown.refs[name] for name in finished.refs} == finished.refs
        added = {name.partition("/")[0] for name in grown.refs.keys() - finished.refs.keys()}
        assert added == {"stacks", "domains", "bundles", "promotions", "epochs"}
        assert grown.store.verify().sound

    def test_nothing_moved_to_the_bit(self, grown, finished):
        assert grown.report["isolated_drift_max"] == 0
        assert grown.report["isolated_drift_rows"] == 24
        for domain in ("aa", "bb"):
            assert grown.report["isolated_at_commit"][domain] == finished.report["isolated_at_commit"][domain]
            # The sweep pads rows beside others now, which bf16 can tell.
            before, now = (found.report["loss"]["base"][domain] for found in (finished, grown))
            assert now == pytest.approx(before, rel=1e-3)

    def test_the_new_bundle_serves_all_three(self, grown, client):
        number, digest, bundle = grown.store.bundles()[-1]
        assert number == 2
        assert bundle.domains == ("aa", "bb", "cc")
        decided = grown.store.promotions()[-1]
        assert (decided.bundle, decided.manifest) == (2, digest)
        assert client.get_model_version_by_alias("tiny", decided.alias).tags["manifest"] == digest

    def test_the_first_finding_is_what_the_promotion_rests_on(self, grown):
        served = grown.report["findings"][0]
        assert {part["name"] for part in served["parts"]} == {"aa", "bb"}
        assert all(part["difference"]["rows"] == 10 for part in served["parts"])
        decided = grown.store.promotions()[-1]
        assert f"bundle         2 is {decided.alias}: {decided.reason}" in grown.job.out
        assert f"20 rows that both measured, of 30 and 20: {decided.alias}" in served["detail"]


@pytest.fixture(scope="module")
def copied(grown, tmp_path_factory):
    """Its store, to be tampered with."""
    return copy_of(grown.store, tmp_path_factory.mktemp("copied"))


@pytest.fixture
def certify(monkeypatch, capsys):
    """Runs ``jobs/certify.py`` in this process: (exit code, its JSON, what it told)."""

    def certify(store: Store, bundle: int | str, *more: str):
        words = ["--campaign", "tiny", "--store", store.uri, "--bundle", str(bundle), "--json", *more]
        monkeypatch.setattr(sys, "argv", ["certify.py", *words])
        monkeypatch.setenv("BS_CLUSTER_STORE", "nowhere")  # or the job would set it for good
        capsys.readouterr()  # what making a base says is not the job's
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(job.ROOT / "jobs/certify.py"), run_name="__main__")
        told = capsys.readouterr()
        return ended.value.code, json.loads(told.out) if told.out else {}, told.err

    return certify


def differing(found) -> set[str]:
    return {line["what"] for line in found["lines"] if line["verdict"] == "differs"}


class TestCertificate:
    def test_a_worker_at_the_closing_and_an_evaluator_at_the_end_agree_to_the_bit(self, grown):
        for _, _, bundle in grown.store.bundles():
            said = certificate_in(grown.store, bundle)
            assert [one.domain for one in said.isolated] == list(bundle.domains)
            assert all(one.at_closing.rows == one.now.rows for one in said.isolated)
            assert all(one.drift == 0 for one in said.isolated)
            alone = [one for one in said.statements if one.statement.startswith("Isolated")]
            assert {one.verdict for one in alone} == {"holds"}

    def test_a_domain_that_was_added_leaves_the_digests_of_those_before_it(self, grown):
        first, second = (certificate_in(grown.store, bundle) for _, _, bundle in grown.store.bundles())
        assert second.isolated[: len(first.isolated)] == first.isolated
        assert {name: second.closings[name] for name in first.closings} == first.closings

    def test_the_report_and_mlflow_tell_of_it(self, grown, client):
        (check,) = [check for check in grown.report["checks"] if "logits" in check["statement"]]
        assert check["answer"] == "holds"
        assert "12 probe rows of 3 domains" in check["detail"]
        said = certificate_in(grown.store, grown.store.bundles()[-1][2])
        version = client.get_model_version("tiny", "2")
        assert version.tags["certificate"] == summary(said.statements)
        source = client.get_model_version_download_uri("tiny", "2")
        path = mlflow.artifacts.download_artifacts(
            f"{source}/artifacts/certificate.json", tracking_uri=tracking_uri(grown.store)
        )
        assert Certificate.from_json(Path(path).read_bytes()) == said

    def test_it_comes_out_the_same_from_the_store_alone(self, copied, certify):
        for bundle in (1, 2):
            code, found, _ = certify(copied, bundle)
            assert (code, differing(found)) == (0, set())
            assert {line["verdict"] for line in found["lines"]} == {"agrees"}
        assert found["scored"] == 24 + 2 * 30
        domains = copied.bundle(copied.standing().champion.manifest).domains
        assert certify(copied, "champion", "--rows", "2")[1]["scored"] == (2 + 2 * 2) * len(domains)

    def test_a_bundle_made_again_from_the_same_files_passes(self, copied, certify):
        """Else a forgery could be noticed for being one more bundle."""
        code, found, _ = certify(copied, forge(copied, {}))
        assert (code, differing(found)) == (0, set())

    def test_losses_that_nobody_measured_are_noticed_though_every_table_agrees(self, copied, certify):
        code, found, _ = certify(copied, forge(copied, better_losses(copied, "aa", 0.1)))
        assert code == 1
        scored = {what for what in differing(found) if not what.startswith("gates")}
        assert scored == {"base loss, 10 rows, aa", "served loss, 10 rows, aa"}

    def test_a_loss_table_that_the_sweep_did_not_measure_is_noticed(self, copied, certify):
        losses = better_losses(copied, "bb", 0.001)["losses.parquet"]
        code, found, _ = certify(copied, forge(copied, {"losses.parquet": losses}), "--rows", "1")
        assert code == 1
        assert differing(found) == {"losses are outcomes"}

    def test_gates_that_the_meta_router_does_not_give_are_noticed(self, copied, certify):
        """Every loss in the table was measured, and under the gates that stand beside it: the base's."""
        held = bundle_losses(copied, copied.bundles()[0][2])
        off = {domain: (0.0,) * len(gates) for domain, gates in held.gates.items()}
        claimed = dataclasses.replace(held, nll={**held.nll, "routed": held.nll["base"]}, gates=off)
        number = forge(copied, {"losses.parquet": write_losses(claimed)})
        code, found, _ = certify(copied, number)
        assert code == 1
        assert differing(found) == {"gates, 10 rows, aa", "gates, 10 rows, bb"}
        assert certify(copied, number, "--rows", "1")[0] == 0

    def test_a_served_loss_that_is_not_of_its_gates_is_noticed(self, copied, certify):
        held = bundle_losses(copied, copied.bundles()[0][2])
        claimed = dataclasses.replace(held, nll={**held.nll, "routed": held.nll["base"]})
        code, found, _ = certify(copied, forge(copied, {"losses.parquet": write_losses(claimed)}), "--rows", "2")
        assert code == 1
        assert differing(found) == {"served loss, 2 rows, aa", "served loss, 2 rows, bb"}

    def test_an_edited_certificate_is_noticed(self, copied, certify):
        def other_bits(said: Certificate) -> Certificate:
            row = dataclasses.replace(said.isolated[1].now.rows[0], logits="0" * 64)
            now = dataclasses.replace(said.isolated[1].now, rows=(row, *said.isolated[1].now.rows[1:]))
            return dataclasses.replace(
                said, isolated=(said.isolated[0], dataclasses.replace(said.isolated[1], now=now))
            )

        def better_news(said: Certificate) -> Certificate:
            told = [dataclasses.replace(one, verdict="holds") for one in said.statements]
            return dataclasses.replace(said, statements=tuple(told), seed=said.seed + 1)

        code, found, _ = certify(copied, forge(copied, {}, other_bits), "--rows", "1")
        assert code == 1
        assert differing(found) == {"isolated logits, bb"}
        code, found, _ = certify(copied, forge(copied, {}, better_news), "--rows", "1")
        assert code == 1
        assert differing(found) >= {"settings and seed", "Rows foreign to every domain are served as by the base"}

    def test_another_base_is_noticed(self, copied, certify, tmp_path):
        config = bundle_config(copied, copied.bundles()[0][2])
        other = config.base.model_copy(update={"model": save_tiny_base(tmp_path / "base", "gemma3", seed=1)})
        settings = to_yaml(config.model_copy(update={"base": other})).encode()
        code, found, _ = certify(copied, forge(copied, {"campaign.yaml": settings}))
        assert code == 1
        assert differing(found) == {"base"}

    def test_a_flipped_bit_of_a_stack_is_refused(self, copied, certify):
        weights = copied.stacks()[0][1].file("adapter_model.safetensors").sha256
        path = Path(copied.uri) / "tiny/blobs/sha256" / weights[:2] / weights
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
        code, found, told = certify(copied, 1)
        assert (code, found) == (1, {})
        assert "IntegrityError" in told

    def test_wrong_input_is_told_before_anything_is_loaded(self, grown, certify):
        for words in (("9",), ("first",), ("1", "--rows", "0")):
            code, _, told = certify(grown.store, *words)
            assert (code, "UsageError" in told) == (2, True)
