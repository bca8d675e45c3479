"""``examples/tour.py`` from top to bottom, and that it shows what it says: its variables are what its reader sees."""

import contextlib
import io
import runpy
import sys

import pytest
import torch
from job import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.long]


@pytest.fixture(scope="module")
def tour(ray_address, tmp_path_factory):
    """What a notebook would hold after its last cell; ``printed`` is what a terminal shows."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("RAY_ADDRESS", ray_address)
        patch.setattr(sys, "argv", ["tour.py", "--folder", str(tmp_path_factory.mktemp("tour"))])
        found = runpy.run_path(str(ROOT / "examples/tour.py"))
    return {**found, "printed": printed.getvalue()}


def test_every_domain_lowers_its_loss_and_routing_keeps_that(tour):
    for report in (tour["first"], tour["second"]):
        loss = report["loss"]
        assert all(loss["isolated"][domain] < loss["base"][domain] - 1 for domain in report["domains"])
        assert all(loss["routed"][domain] < loss["base"][domain] - 1 for domain in report["domains"])


def test_gates_favour_the_domain_that_a_prompt_is_of(tour):
    for answers, domains in ((tour["before"], ("animals", "days")), (tour["after"], ("animals", "days", "capitals"))):
        for domain, answer in zip(domains, answers, strict=False):
            assert max(answer["gates"], key=answer["gates"].__getitem__) == domain, answer


def test_the_third_domain_moves_nothing(tour):
    assert tour["second"]["domains"] == ["animals", "days", "capitals"]
    assert tour["second"]["isolated_drift_max"] == 0.0


def test_its_certificate_comes_out_again(tour):
    assert {line["verdict"] for line in tour["certified"]["lines"]} == {"agrees"}
    stated = {line["recomputed"] for line in tour["certified"]["lines"] if line["what"].startswith("Isolated l")}
    assert stated == {"holds"}


def test_the_server_answers_as_generate_does(tour):
    served = [(answer["choices"][0]["message"]["content"], answer["gates"]) for answer in tour["served"]]
    assert served == [(answer["completion"], answer["gates"]) for answer in tour["after"]]
    assert tour["server"].returncode == 0


def test_what_was_exported_has_the_same_logits(tour):
    logits = tour["logits"]
    assert torch.equal(logits["exported"], logits["the campaign's"])
    assert not torch.equal(logits["exported"], logits["the bare base's"])
    assert "exported logits differ from the campaign's   by 0 at most" in tour["printed"]
