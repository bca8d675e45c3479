"""Taking domains out of a finished campaign, as a user does: what is left is as it was, to the bit, and is served.

One campaign, from a copy of its store and without MLflow's database: the middle domain is replaced and another rolled
back, in one run; then the middle one is removed; then the rounds of another become one stack.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import job
import pytest
import yaml
from campaigns import Outcome, outcome
from forgery import copy_of
from mlflow import MlflowClient
from tiny_campaign import WORDS

from bs_cluster.campaign.recompute import certificate_in, recompute
from bs_cluster.cli.main import main
from bs_cluster.config import load_config
from bs_cluster.serving.runtime import BundleRuntime
from bs_cluster.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def asked(action: str, config: Path, name: str, *more: str) -> None:
    assert main(("domains", action, "--config", str(config), "--name", name, "--reason", f"{action} it", *more)) == 0


def other_rows(path: Path) -> str:
    draw = random.Random(1)
    words = [f"{draw.choice(WORDS)}{draw.randint(10_000, 99_999)}" for _ in range(120)]
    path.write_text("".join(json.dumps({"prompt": f"bb {w}", "completion": w[::-1]}) + "\n" for w in words))
    return str(path)


def manifest_of(store: Store, number: int):
    return next(manifest for bundle, _, manifest in store.bundles() if bundle == number)


def logits(store: Store, number: int) -> dict:
    """Probed logits by domain, as the bundle's own run computed them."""
    return {one.domain: one.now.rows for one in certificate_in(store, manifest_of(store, number)).isolated}


def differing(store: Store, number: int) -> list:
    """The lines of a bundle's certificate that do not come out again."""
    found = recompute(store, manifest_of(store, number), "cpu", 2, print)
    return [line for line in found.lines if line.verdict != "agrees"]


def aliases(store: Store, model: str) -> dict[str, str]:
    """By alias the digest of what it points to."""
    client = MlflowClient(uri := f"sqlite:///{store.uri}/mlflow.db", uri)
    return {
        alias: client.get_model_version(model, version).tags["manifest"]
        for alias, version in client.get_registered_model(model).aliases.items()
    }


@dataclass(frozen=True)
class Changed:
    """A campaign before and after, which domain was rolled back and which was left alone."""

    before: Outcome
    after: Outcome
    back: str
    alone: str


@pytest.fixture(scope="module")
def changed(run, grown, tiny_settings, tmp_path_factory):
    """bb is replaced, by other rows, and one of the others loses its second round."""
    folder = tmp_path_factory.mktemp("retired")
    settings = tiny_settings(folder / "store", ("aa", "bb", "cc"))
    settings["domains"][2]["after"] = ["bb"]
    config = job.write_config(folder / "tiny.yaml", settings)
    before = replace(grown, config=config, store=copy_of(grown.store, folder / "store"))
    rounds = [ref.stack.domain for ref, _ in before.store.stacks()]
    back = next(domain for domain in ("aa", "cc") if rounds.count(domain) == 2)
    asked("rollback", config, back)
    asked("replace", config, "bb")
    settings["domains"][1]["sources"][0]["path"] = other_rows(folder / "other.jsonl")
    config.write_text(yaml.safe_dump(settings, sort_keys=False))
    after = outcome(run(config), config, folder / "store")
    return Changed(before, after, back, "cc" if back == "aa" else "aa")


class TestReplacedAndRolledBack:
    def test_history_only_grew_and_nothing_is_garbage(self, changed):
        assert {name: changed.after.refs[name] for name in changed.before.refs} == changed.before.refs
        assert changed.after.store.verify().sound

    def test_the_replaced_domain_trained_on_other_rows_and_goes_on_counting(self, changed):
        first, second = [record for record in changed.after.store.closings() if record.domain == "bb"]
        assert first.data_fingerprint != second.data_fingerprint
        assert second.rounds[0].stack.round == len(first.rounds) + 1
        assert second.isolated < second.base_loss

    def test_the_rolled_back_domain_closed_on_what_it_had_left_and_its_own_rows(self, changed):
        first, second = [record for record in changed.after.store.closings() if record.domain == changed.back]
        assert [one.stack.round for one in second.rounds] == [1]
        assert second.rows == first.rows
        assert second.isolated > first.isolated
        assert f"{changed.back}_r3" not in {ref.stack.name for ref, _ in changed.after.store.every_stack()}

    def test_the_third_is_as_it_was_to_the_bit(self, changed):
        before, now = logits(changed.after.store, 2), logits(changed.after.store, 3)
        assert now[changed.alone] == before[changed.alone]
        assert now["bb"] != before["bb"]
        assert changed.after.report["isolated_drift_max"] == 0

    def test_a_missing_parent_is_none_and_no_loss_under_others(self, changed):
        parents = changed.after.report["loss"]["parents"]
        assert parents["cc"] is None, "it trained beside rounds that are gone"
        assert parents["bb"] is not None

    def test_aliases_move(self, changed):
        store = changed.after.store
        _, digest, bundle = store.bundles()[-1]
        assert aliases(store, "tiny") == {"champion": digest}
        for domain in bundle.domains:
            newest = [ref.manifest for ref in bundle.stacks if ref.stack.domain == domain][-1]
            assert aliases(store, f"tiny-{domain}") == {"champion": newest}

    def test_certificates_of_before_and_of_now_come_out_again(self, changed):
        assert differing(changed.after.store, 2) == []
        assert differing(changed.after.store, 3) == []


@pytest.fixture(scope="module")
def removed(changed, run):
    """Then bb is taken out for good, bytes and all."""
    config = changed.after.config
    asked("remove", config, "bb", "--purge")
    assert changed.after.store.standing().champion is None
    return outcome(run(config), config, config.parent / "store")


class TestRemoved:
    def test_the_config_is_without_it(self, removed):
        config = load_config(removed.config)
        assert [domain.name for domain in config.domains] == ["aa", "cc"]
        assert config.domain("cc").after == ()

    def test_nothing_is_trained_and_no_outcome_measured_again(self, removed, changed):
        added = {name.partition("/")[0] for name in removed.refs.keys() - changed.after.refs.keys()}
        assert added == {"retirements", "erasures", "bundles", "promotions", "epochs"}
        assert removed.store.verify().sound
        assert removed.store.gc(0).blobs == ()

    def test_the_others_alone_are_as_they_were_to_the_bit(self, removed, changed):
        now = {one.domain: one for one in certificate_in(removed.store, manifest_of(removed.store, 4)).isolated}
        assert set(now) == {"aa", "cc"}
        assert all(one.now.rows == one.at_closing.rows for one in now.values())

    def test_a_bundle_of_the_others_is_served_and_answers(self, removed):
        number, digest, bundle = removed.store.bundles()[-1]
        assert (number, bundle.domains) == (4, ("aa", "cc"))
        assert aliases(removed.store, "tiny") == {"champion": digest}
        assert aliases(removed.store, "tiny-bb") == {}
        runtime = BundleRuntime(removed.store, bundle, "cpu")
        (answer,) = runtime.answer(["aa alpha12"], max_new_tokens=2)
        assert set(answer.gates) == {"aa", "cc"}

    def test_its_certificate_comes_out_again(self, removed):
        assert differing(removed.store, 4) == []

    def test_running_again_does_nothing(self, removed, run):
        done = run(removed.config)
        assert (done.code, "is complete: bundle 4" in done.out) == (0, True), done.err


@pytest.fixture(scope="module")
def merged(removed, changed, run, tmp_path_factory):
    """The rounds of the domain that was left alone become one stack, whatever that loses on so few rows."""
    config, folder = removed.config, tmp_path_factory.mktemp("merged") / "stack"
    compress = ("domains", "compress", changed.alone, "--config", str(config))
    assert main((*compress, "--tolerance=-9", "--commit")) == 1, "what loses more than it may is not committed"
    assert removed.store.live().waiting == ()
    assert main((*compress, "--tolerance=9", "--commit", "--out", str(folder))) == 0
    return outcome(run(config), config, config.parent / "store")


class TestMerged:
    def test_one_stack_stands_in_the_place_of_all_rounds(self, merged, changed):
        (stack,) = [manifest for _, manifest in merged.store.stacks() if manifest.stack.domain == changed.alone]
        first, closed = [record for record in merged.store.closings() if record.domain == changed.alone]
        assert stack.stack.round == max(outcome.stack.round for outcome in first.rounds) + 1
        assert stack.metrics["merged_rounds"] > 1
        assert stack.metrics["gain"] > 0, "it beats what it stands beside"
        assert [outcome.stack for outcome in closed.rounds] == [stack.stack]
        assert closed.rows == first.rows

    def test_nothing_is_trained_and_the_other_domain_is_as_it_was_to_the_bit(self, merged, removed, changed):
        added = {name.rpartition("/")[0] for name in merged.refs.keys() - removed.refs.keys()}
        alone = {f"{kind}/{changed.alone}" for kind in ("stacks", "domains")}
        assert added == {*alone, "retirements", "bundles", "promotions", "epochs"}
        before, now = logits(merged.store, 4), logits(merged.store, 5)
        assert now[changed.back] == before[changed.back]
        assert now[changed.alone] != before[changed.alone]

    def test_a_bundle_with_it_is_made_and_certified(self, merged, changed):
        number, digest, bundle = merged.store.bundles()[-1]
        assert (number, set(bundle.domains)) == (5, {"aa", "cc"})
        assert [ref.stack.domain for ref in bundle.stacks].count(changed.alone) == 1
        assert digest in {promotion.manifest for promotion in merged.store.promotions()}
        assert differing(merged.store, 5) == []
        assert merged.store.verify().sound
        assert merged.store.gc(0).blobs == ()
