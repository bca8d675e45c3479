"""``bs_cluster serve`` on the wrong foot: told at once, before a model is loaded."""

import socket

import pytest
from tiny_history import bundle_manifest, commit_round

from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION
from bs_cluster.store import Store


@pytest.fixture
def held(tmp_path):
    """A store with one bundle; its stack is no real one, so that loading it would fail."""
    store = Store(str(tmp_path / "held"), "demo")
    commit_round(store, tmp_path / "staged", "chat", 1)
    store.commit_bundle(bundle_manifest(store))
    return store


@pytest.fixture
def serve(held, ran, monkeypatch):
    monkeypatch.delenv("BS_CLUSTER_API_KEY", raising=False)

    def serve(*words: str):
        code, out, err = ran("serve", "--campaign", "demo", "--store", held.uri, *words)
        assert out == ""
        return code, err

    return serve


def test_without_a_champion_it_says_what_to_name(serve):
    code, err = serve()
    assert code == 1
    assert "no champion: name a bundle with --bundle N" in err


def test_a_bundle_that_is_not_there(serve):
    code, err = serve("--bundle", "7")
    assert code == 2
    assert "no bundle 7; it has 1 to 1" in err


def test_an_address_that_others_reach_wants_a_key(serve):
    code, err = serve("--host", "0.0.0.0")
    assert code == 2
    assert "name --api-key-file or set BS_CLUSTER_API_KEY" in err


def test_a_file_without_a_key(serve, tmp_path):
    (tmp_path / "keys").write_text("\n  \n")
    assert serve("--api-key-file", str(tmp_path / "keys")) == (
        2,
        f"--api-key-file {tmp_path / 'keys'} holds no key; write one a line\n",
    )
    assert serve("--api-key-file", str(tmp_path / "none"))[0] == 2


@pytest.mark.parametrize("option", ["--max-running", "--max-tokens", "--max-prompt-tokens", "--reload-every"])
def test_a_limit_is_more_than_nothing(serve, option):
    code, err = serve(option, "0")
    assert code == 2
    assert f"{option.strip('-').replace('-', '_')} 0: must be more than 0" in err.replace("0.0", "0")


def test_an_address_that_is_taken(held, serve):
    held.promote(1, CHAMPION, HAND, "the first")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = serve("--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "Address already in use; name another" in err
