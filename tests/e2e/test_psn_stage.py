"""``python -m benchmarks.psn`` in its quick form: on the tiny campaign, whole, then killed and gone on with."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from benchmarks.evidence.campaign import Campaign
from benchmarks.psn import count, main, sized
from benchmarks.psn_found import POOLED, read
from bs_cluster.base.load import load_base

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def measured(finished, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("psn") / "psn.json"
    run(file, finished)
    return file


def run(file: Path, finished) -> None:
    named = f"{finished.store.uri}:tiny"
    arguments = ["--campaigns", named, "--without", named, "--threads", "1", "--output", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["psn", *arguments])
        main()


def test_a_domain_has_a_loss_for_each_of_its_stacks_and_for_models_from_scratch(measured, finished):
    (found,) = read(measured)
    stacks = [ref.stack.domain for ref, _ in finished.store.stacks()]
    for domain in found.domains:
        rows = len(found.tokens[domain])
        assert len(found.by_stacks[domain]) == 1 + stacks.count(domain)
        curves = (*found.by_stacks[domain], found.dense[domain].nll[domain], found.dense[POOLED].nll[domain])
        assert all(len(nll) == rows for nll in curves)
        tokens = sum(found.tokens[domain])
        for mode, nll in (("base", found.by_stacks[domain][0]), ("isolated", found.by_stacks[domain][-1])):
            recorded = sum(found.recorded[domain][mode]) / tokens
            assert sum(nll) / tokens == pytest.approx(recorded, abs=0.01), mode  # both harnesses score alike
        assert len(found.blocks.own[domain]) == len(found.blocks.together[domain]) == rows
        assert sum(found.blocks.own[domain]) < sum(found.by_stacks[domain][0]), "its blocks taught it nothing"
    assert found.other_bits == 0


def test_what_was_trained_is_kept_and_not_trained_again(measured, finished):
    whole, text = read(measured), measured.read_text()
    run(measured, finished)
    assert measured.read_text() == text
    (found,) = whole
    left = {name: dense for name, dense in found.dense.items() if name != POOLED}
    measured.write_text(json.dumps({found.campaign: dataclasses.replace(found, dense=left).to_dict()}))
    run(measured, finished)
    (again,) = read(measured)
    assert again.dense[POOLED].nll == found.dense[POOLED].nll


def test_a_dense_model_is_of_the_size_that_was_asked_for(finished):
    like = load_base(Campaign(finished.store).config.base, device="cpu").model.config
    for parameters in (20_000, 100_000, 400_000):
        made = count(sized(like, parameters, count))
        assert abs(made / parameters - 1) < 0.2
