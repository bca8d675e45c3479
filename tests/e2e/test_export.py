"""``bs_cluster export`` of a campaign that was really trained: what leaves is what was measured there."""

import json

import mlflow
import pytest
import torch
from job import as_user
from peft import PeftModel

from bs_cluster.base.load import load_base
from bs_cluster.inference.stacked import StackedBase
from bs_cluster.serving.runtime import DomainRuntime
from bs_cluster.store.bundle_config import bundle_config

pytestmark = [pytest.mark.slow, pytest.mark.ray]

IDS = torch.tensor([[2, 100, 101, 35, 102, 103]])


@pytest.fixture
def export(finished, tmp_path):
    """As a user runs it, from anywhere: (folder, what it said as JSON)."""

    def export(*words: str):
        folder = tmp_path / "exported"
        place = ["--store", finished.store.uri, "--campaign", "tiny", "--to", str(folder), "--json"]
        return folder, json.loads(as_user("-m", "bs_cluster.cli", "export", *place, *words))

    return export


@pytest.fixture
def base(finished):
    """The campaign's settings of its base."""
    return bundle_config(finished.store, finished.store.bundle(finished.store.standing().champion.manifest)).base


def rounds(finished, domain: str):
    return [ref for ref, _ in finished.store.stacks() if ref.stack.domain == domain]


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_a_trained_domain_leaves_as_it_is(finished, export, base):
    folder, told = export("--domain", "aa")
    stacked = StackedBase.load(base, "cpu")
    for ref in rounds(finished, "aa"):
        stacked.attach(finished.store.manifest(ref.manifest), finished.store)
    stacked.fire(stacked.names)
    loaded = PeftModel.from_pretrained(load_base(base, device="cpu").model, folder)
    assert torch.equal(logits(loaded), logits(stacked.base.model))
    (losses,) = told["losses"]
    assert losses["gap"]["mean"] == 0.0
    closed = next(record for record in finished.store.domains() if record.domain == "aa")
    assert losses["base"]["rows"] == closed.data_counts["validation"] + closed.data_counts["sweep"]


@pytest.mark.parametrize("form", ["lora", "merged"])
def test_fixed_gates_are_told_with_what_they_lose(export, form):
    folder, told = export("--gates", "aa=1,bb=0.5", "--form", form)
    card = (folder / "README.md").read_text()
    assert [losses["domain"] for losses in told["losses"]] == ["aa", "bb"]
    for losses in told["losses"]:
        assert losses["gap"]["rows"] > 0
        assert f"{losses['gap']['mean']:+.3f}".replace("-", "−") in card


def test_the_domain_in_the_registry_answers_with_all_its_rounds(finished):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{finished.store.uri}/mlflow.db")
    try:
        answers = mlflow.pyfunc.load_model("models:/tiny-aa@champion").predict(["aa alpha1", "aa beta2"])
    finally:
        mlflow.set_tracking_uri(before)
    wanted = DomainRuntime(finished.store, rounds(finished, "aa"), "cpu").answer(["aa alpha1", "aa beta2"])
    assert [answer["completion"] for answer in answers] == [answer.text for answer in wanted]
    assert all(answer["gates"] == {"aa": 1.0} for answer in answers)
