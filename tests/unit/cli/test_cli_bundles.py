"""Who is served: compared, held back, forced, rolled back, and shown by MLflow as the store has it."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tiny_history import bundle_manifest, commit_round, domain_record

from bs_cluster.campaign.promote import promote
from bs_cluster.cli.places import bundle_of
from bs_cluster.config.schema import PromotionSection
from bs_cluster.errors import NotInStoreError, UsageError
from bs_cluster.registry.database import ensure_database
from bs_cluster.store import Store

GUARDED = PromotionSection()
FIRST = {"chat": 2.0, "math": 2.0, "mixed:sums": 2.0, "foreign:games": 2.0}
WORSE = FIRST | {"chat": 1.0, "math": 2.5}  # better in the mean
BETTER = FIRST | {"chat": 1.5}


@pytest.fixture
def store(tmp_path) -> Store:
    """One domain, and a first bundle that is champion."""
    store = Store(str(tmp_path / "held"), "demo")
    store.pin_identity({"seed": 1})
    commit_round(store, tmp_path / "staged", "chat", 1)
    store.close_domain(domain_record(store, "chat"))
    commit(store, 1, FIRST)
    return store


def commit(store: Store, number: int, served: dict[str, float], settings: PromotionSection = GUARDED):
    manifest = bundle_manifest(store, number, served)
    store.commit_bundle(manifest)
    return promote(store, manifest, settings)


@pytest.fixture
def bundles(ran, store):
    def bundles(*words: str):
        code, out, err = ran("bundles", *words, "--campaign", "demo", "--store", store.uri)
        return code, out + err

    return bundles


def champion(store: Store) -> int:
    found = Store(store.uri, "demo").standing().champion
    assert found is not None
    return found.bundle


def test_a_worse_bundle_is_not_promoted_and_then_is_by_force(store, bundles):
    assert commit(store, 2, WORSE).alias == "challenger"
    assert champion(store) == 1
    code, out = bundles("promote", "2")
    assert code == 1
    assert "math +0.500" in out
    assert "bundle 1 stays champion" in out
    assert champion(store) == 1
    assert bundles("promote", "2", "--force")[0] == 0
    assert champion(store) == 2
    assert bundles("promote", "2")[0] == 2  # it is already
    assert store.verify().sound


def test_a_rerun_does_not_judge_again_what_a_hand_has_decided(store, bundles):
    commit(store, 2, BETTER)
    assert champion(store) == 2
    assert bundles("rollback")[0] == 0
    assert champion(store) == 1
    again = promote(store, store.bundles()[-1][2], GUARDED)
    assert (again.bundle, champion(store), len(store.promotions())) == (2, 1, 3)


def test_rollback_goes_back_one_champion_at_a_time_or_to_a_named_one(store, bundles):
    commit(store, 2, BETTER)
    commit(store, 3, FIRST | {"chat": 1.2})
    commit(store, 4, WORSE)
    assert bundles("rollback", "--to", "4")[0] == 2  # it never was
    assert (bundles("rollback")[0], champion(store)) == (0, 2)
    assert (bundles("rollback")[0], champion(store)) == (0, 1)
    code, told = bundles("rollback")
    assert code == 1
    assert "nothing to roll back to" in told
    assert (bundles("promote", "3")[0], champion(store)) == (0, 3)
    assert (bundles("rollback", "--to", "1")[0], champion(store)) == (0, 1)


def test_the_next_bundle_is_compared_with_the_one_that_was_rolled_back_to(store, bundles):
    commit(store, 2, FIRST | {"chat": 1.0})
    bundles("rollback")
    assert commit(store, 3, BETTER).alias == "champion"  # worse than bundle 2, better than 1
    assert champion(store) == 3


@pytest.mark.parametrize(("policy", "alias"), [("always", "champion"), ("manual", "challenger")])
def test_the_policy_decides(store, policy, alias):
    assert commit(store, 2, WORSE, PromotionSection(policy=policy)).alias == alias


def test_compare_prints_the_table_of_the_report_and_finds_who_is_worse(store, bundles):
    commit(store, 2, WORSE)
    code, out = bundles("compare", "1", "2")
    assert code == 1
    assert "chat" in out
    assert "−1.000" in out
    assert "48 rows that both measured" in " ".join(out.split())
    assert bundles("compare", "1", "2", "--tolerance", "0.6")[0] == 0
    assert bundles("compare", "2", "1")[0] == 1  # chat is
    assert bundles("compare", "1", "3")[0] == 2
    code, out = bundles("compare", "1", "2", "--json")
    change = json.loads(out)["change"]
    assert {group["group"]: group["worse"] for group in change["groups"]} == {
        "chat": False,
        "math": True,
        "all mixed": False,
        "all foreign": False,
    }


def test_a_bundle_without_losses_by_row_waits_for_a_person(store, bundles):
    manifest = bundle_manifest(store, 2)
    store.commit_bundle(manifest)
    decided = promote(store, manifest, GUARDED)
    assert (decided.alias, champion(store)) == ("challenger", 1)
    assert "cannot be compared" in decided.reason
    assert bundles("promote", "2")[0] == 1
    assert "no measured row in common" in bundles("compare", "1", "2")[1]
    assert bundles("promote", "2", "--force")[0] == 0


def test_what_answers_is_the_champion_unless_another_is_named(store):
    with pytest.raises(NotInStoreError, match="no bundle"):
        bundle_of(Store(f"{store.uri}-empty", "demo"), None)
    commit(store, 2, WORSE)
    assert [bundle_of(store, asked)[0] for asked in (None, 1, 2)] == [1, 1, 2]
    with pytest.raises(UsageError, match="no bundle 3; it has 1 to 2"):
        bundle_of(store, 3)


def test_without_a_champion_nothing_answers_by_itself(tmp_path):
    store = Store(str(tmp_path), "demo")
    commit_round(store, tmp_path / "staged", "chat", 1)
    commit(store, 1, FIRST, PromotionSection(policy="manual"))
    with pytest.raises(NotInStoreError, match="has no champion"):
        bundle_of(store, None)
    assert bundle_of(store, 1)[0] == 1


def test_list_says_who_is_served_and_why(store, bundles):
    commit(store, 2, WORSE)
    out = bundles("list")[1]
    assert "champion: the first bundle" in out
    assert "challenger: served worse than by bundle 1" in out


def test_mlflow_follows_the_store_at_every_sync(store, bundles, ran, monkeypatch):
    """The one beside the store; the registry's own tests have the rest of it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    ensure_database(Path(store.uri) / "mlflow.db", print)
    uri = f"sqlite:///{store.uri}/mlflow.db"
    client = MlflowClient(uri, uri)

    def aliases() -> dict[str, int]:
        assert ran("registry", "sync", "--campaign", "demo", "--store", store.uri)[0] == 0
        return {alias: int(version) for alias, version in client.get_registered_model("demo").aliases.items()}

    commit(store, 2, WORSE)
    assert aliases() == {"champion": 1, "challenger": 2}
    assert "math +0.500" in client.get_model_version("demo", "2").tags["promotion"]
    bundles("promote", "2", "--force")
    assert aliases() == {"champion": 2}
    bundles("rollback")
    assert aliases() == {"champion": 1}
    client.set_registered_model_alias("demo", "champion", "2")
    assert aliases() == {"champion": 1}
