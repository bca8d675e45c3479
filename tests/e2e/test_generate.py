"""``jobs/generate.py`` on the bundle of a finished campaign."""

import runpy
import sys

import pytest
from job import ROOT, as_user

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SCRIPT = str(ROOT / "jobs/generate.py")


@pytest.fixture
def generate(finished, monkeypatch, capsys):
    """Runs the script in this process; (exit code, stdout, stderr)."""

    def generate(*arguments: str, store: str = finished.store.uri):
        monkeypatch.setattr(sys, "argv", [SCRIPT, "--store", store, "--max-new-tokens", "4", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(SCRIPT, run_name="__main__")
        told = capsys.readouterr()
        return ended.value.code, told.out, told.err

    return generate


def test_answers_routed_and_shows_the_gates(finished):
    """As a user starts it: in a process of its own, from anywhere."""
    arguments = ["--campaign", "tiny", "--store", finished.store.uri, "--max-new-tokens", "4", "aa alpha1", "bb beta2"]
    told = as_user(SCRIPT, *arguments)
    assert told.count("[routed]") == 2
    assert "> aa alpha1" in told
    assert "> bb beta2" in told


def test_isolated_fires_that_domain_alone(generate):
    code, out, _ = generate("--campaign", "tiny", "--isolated", "aa", "aa alpha1")
    assert code == 0
    assert "[aa]  aa 1.00\n" in out


@pytest.fixture
def domains(finished):
    """Of the champion: another module may have added a bundle to the campaign since."""
    return finished.store.bundle(finished.store.standing().champion.manifest).domains


def test_ungated_fires_all(generate, domains):
    code, out, _ = generate("--campaign", "tiny", "--ungated", "aa alpha1")
    assert code == 0
    assert f"[ungated]  {', '.join(f'{domain} 1.00' for domain in domains)}\n" in out


def test_base_fires_none(generate):
    code, out, _ = generate("--campaign", "tiny", "--base", "aa alpha1")
    assert code == 0
    assert "[base]  no domain fires\n" in out


def test_compare_answers_every_way(generate, domains):
    code, out, _ = generate("--campaign", "tiny", "--compare", "aa alpha1")
    assert code == 0
    assert [line.split("]")[0] for line in out.splitlines() if line.startswith("[")] == [
        *(f"[{domain}" for domain in domains),
        *("[base", "[ungated", "[routed"),
    ]


def test_an_unknown_domain_is_a_wrong_argument(generate):
    code, out, err = generate("--campaign", "tiny", "--isolated", "aaa", "hello")
    assert code == 2
    assert "'aaa' is not in the bundle; it has aa, bb" in err  # and whatever was added since
    assert out == ""


def test_an_unknown_campaign_is_told_with_the_store_it_looked_in(generate, finished):
    code, _, err = generate("--campaign", "tinny", "hello")
    assert code == 2
    assert "campaign 'tinny' has nothing in" in err
    assert finished.store.uri in err
