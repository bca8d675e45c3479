"""A server's life: crowds, clients that leave, another champion, a signal; what it logs and counts."""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time

import openai
import pytest
import requests
from serving import KEY, server, until
from tiny_bundle import commit_bundle

from bs_cluster.promotion import HAND, ROLLBACK
from bs_cluster.records import CHALLENGER, CHAMPION
from bs_cluster.serving.runtime import BundleRuntime

pytestmark = pytest.mark.slow
LONG = 400


@pytest.fixture(scope="module")
def endless(runtime):
    """A prompt that the base alone would go on answering."""
    for number in range(40):
        prompt = f"bb w{number}"
        ids = runtime.answer([prompt], runtime.fixed_gates([], 1), LONG)[0].text
        if len(ids) >= LONG // 2:
            return prompt
    raise AssertionError("every answer ends soon")


def stream(client, prompt: str, new: int = LONG, model: str = "tiny:base"):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=new, stream=True
    )


def said(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@pytest.fixture(scope="module")
def crowded(bundled, tmp_path_factory):
    """A server with one slot and room for one to wait."""
    log = tmp_path_factory.mktemp("crowded") / "log"
    options = ("--max-running", "1", "--max-waiting", "1", "--max-tokens", "900", "--log-prompts")
    with server(bundled.store.uri, log, *options) as served:
        yield served


def test_one_more_than_fits_is_told_to_come_back(crowded, endless):
    with crowded.client() as client:
        running = stream(client, endless, 900)
        next(iter(running))
        waiting = threading.Thread(target=lambda: said(stream(client, endless, 5)))
        waiting.start()
        until("one waits", lambda: crowded.metric("waiting_requests") == 1)
        with pytest.raises(openai.RateLimitError) as told:
            stream(client, endless)
        assert told.value.code == "rate_limit_exceeded"
        assert told.value.response.headers["retry-after"] == "1"
        assert len(said(running)) > LONG // 2  # who runs is not disturbed
        waiting.join(30)
        assert said(stream(client, endless, 5))


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_frees_its_slot(crowded, endless, streamed):
    tokens = crowded.metric("tokens_total")
    body = {"model": "tiny:base", "messages": [{"role": "user", "content": endless}], "max_tokens": 900}
    with contextlib.suppress(requests.Timeout):  # it leaves by running out of patience, or after the first events
        requests.post(
            f"{crowded.url}/v1/chat/completions",
            json={**body, "temperature": 0, "stream": streamed},
            headers={"Authorization": f"Bearer {KEY}"},
            stream=True,
            timeout=0.2,
        ).close()
    until("its slot is free", lambda: crowded.metric("running_requests") == 0)
    assert crowded.metric("tokens_total") - tokens < 850
    with crowded.client() as client:
        assert said(stream(client, "aa x", 3, "tiny"))


def test_prompts_and_answers_are_logged_only_where_that_is_asked(served, crowded):
    for one in (served, crowded):
        with one.client() as client:
            answer = said(stream(client, "aa secret7", 6, "tiny"))
    until("it is logged", lambda: "secret7" in crowded.log.read_text())
    assert repr(answer) in crowded.log.read_text()
    assert "tiny: " in served.log.read_text()  # the request itself
    assert "secret7" not in served.log.read_text()
    assert repr(answer) not in served.log.read_text()


def test_what_is_counted_and_that_it_says_nothing_of_prompts(served):
    before = {name: served.metric(name) for name in ("requests_total", "routing_seconds_count", "tokens_total")}
    with served.client() as client:
        said(stream(client, "aa counted1", 7, "tiny"))
    until("it is counted", lambda: served.metric("request_seconds_count") > 0)
    after = {name: served.metric(name) for name in before}
    assert after["requests_total"] == before["requests_total"] + 1
    assert after["routing_seconds_count"] == before["routing_seconds_count"] + 1
    assert after["tokens_total"] > before["tokens_total"] + 7
    told = served.get("/metrics").text
    assert 'bs_cluster_bundle{alias="champion"} 1.0' in told
    assert "counted1" not in told


def test_another_champion_is_served_and_who_runs_is_not_disturbed(inputs, tmp_path, endless):
    """A third domain comes while an answer runs; then the first bundle again."""
    folder = tmp_path / "store"
    first = commit_bundle(inputs, folder, ("aa", "bb"))
    store = first.store
    store.promote(1, CHAMPION, HAND, "the first")
    with server(store.uri, tmp_path / "log", "--reload-every", "0.1") as served, served.client() as client:
        calm = said(stream(client, endless))
        second = commit_bundle(inputs, folder, ("aa", "bb", "cc"))
        running = stream(client, endless)
        pieces = [next(iter(running)).choices[0].delta.content or ""]
        store.promote(2, CHALLENGER, HAND, "to look at")
        until("the challenger can be asked", lambda: "tiny@challenger" in {model.id for model in client.models.list()})
        assert stream(client, "cc x", 3, "tiny")
        store.promote(2, CHAMPION, HAND, "a third domain")
        until("it is champion", lambda: served.get("/ready").json()["bundle"] == 2)
        assert "".join(pieces) + said(running) == calm
        runtime = BundleRuntime(store, second.manifest, "cpu")
        for on in ("aa", "cc"):
            wanted = runtime.answer(["cc y"], runtime.fixed_gates([on], 1), 12)[0].text
            assert said(stream(client, "cc y", 12, f"tiny:{on}")) == wanted
        routed = runtime.answer(["cc beta3"], None, 12)[0]
        answer = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "cc beta3"}], temperature=0, max_tokens=12
        )
        assert (answer.choices[0].message.content, answer.gates) == (routed.text, dict(routed.gates))
        assert answer.system_fingerprint == "bundle-2"
        store.promote(1, CHAMPION, ROLLBACK, "back")
        until("the first is served again", lambda: served.get("/ready").json()["bundle"] == 1)
        assert "tiny:cc" not in {model.id for model in client.models.list()}
        assert said(stream(client, endless)) == calm


def test_a_champion_that_cannot_be_loaded_leaves_what_is_served(inputs, tmp_path):
    folder = tmp_path / "store"
    store = commit_bundle(inputs, folder, ("aa", "bb")).store
    store.promote(1, CHAMPION, HAND, "the first")
    with server(store.uri, tmp_path / "log", "--reload-every", "0.1") as served, served.client() as client:
        second = commit_bundle(inputs, folder, ("aa", "bb", "cc"))
        digest = second.manifest.file("router.safetensors").sha256
        (blob,) = (folder / "tiny" / "blobs").rglob(digest)
        kept = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(b"damaged")
        store.promote(2, CHAMPION, HAND, "damaged")
        until("it was tried", lambda: served.metric("reloads_total") > 0)
        assert "is damaged" in served.log.read_text()
        assert served.get("/ready").json() == {"ready": True, "bundle": 1}
        assert said(stream(client, "aa x", 3, "tiny"))
        blob.write_bytes(kept)
        until("it is mended", lambda: served.get("/ready").json()["bundle"] == 2)


def test_a_signal_lets_running_answers_end_and_no_new_one_begin(bundled, tmp_path, endless):
    with server(bundled.store.uri, tmp_path / "log", "--max-tokens", "900") as served, served.client() as client:
        running = stream(client, endless, 900)
        first = next(iter(running))
        served.process.send_signal(signal.SIGTERM)
        until("it says that it stops", lambda: served.get("/ready").status_code == 503)
        assert served.get("/health").status_code == 200
        with pytest.raises(openai.InternalServerError) as told:
            stream(client, "aa x", 3)
        assert (told.value.status_code, told.value.code) == (503, "unavailable")
        chunks = list(running)
        assert chunks[-1].choices[0].finish_reason in ("length", "stop")
        assert len(said([first, *chunks])) > 400
        assert served.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(bundled, tmp_path, endless):
    with server(bundled.store.uri, tmp_path / "log", "--max-tokens", "900") as served, served.client() as client:
        next(iter(stream(client, endless, 900)))
        served.process.send_signal(signal.SIGINT)
        until("it says that it stops", lambda: served.get("/ready").status_code == 503)
        started = time.monotonic()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) is not None
        assert time.monotonic() - started < 10


def test_keys_of_a_file_all_let_in_and_none_is_needed_without(bundled, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\n  second-key \n")
    with server(bundled.store.uri, tmp_path / "log", "--api-key-file", str(keys), key=None) as served:
        for key in ("first-key", "second-key"):
            assert served.client(key).models.list().data
        with pytest.raises(openai.AuthenticationError):
            served.client("first-ke").models.list()
    with server(bundled.store.uri, tmp_path / "log", "--bundle", "1", key=None) as served:
        models = {model.id for model in served.client("whatever").models.list()}
        assert models == {"tiny", "tiny:aa", "tiny:bb", "tiny:base"}  # no alias: this bundle, whoever is champion
        page = served.get("/")
        assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", page.text)
        assert "connect-src 'self'" in page.headers["content-security-policy"]


def asked_as(url: str, host: str) -> requests.Response:
    return requests.get(f"{url}/v1/models", headers={"Host": host, "Authorization": f"Bearer {KEY}"}, timeout=10)


def test_without_a_key_only_this_machine_s_names_are_answered(bundled, served, tmp_path):
    """A page whose own name resolves to this machine would read what its reader's browser is answered."""
    with server(bundled.store.uri, tmp_path / "log", "--allow-host", "Bundle.example", key=None) as open_to_all:
        for host in ("127.0.0.1", "localhost:8000", "LOCALHOST.", "[::1]:80", "bundle.example:443"):
            assert asked_as(open_to_all.url, host).status_code == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "[::2]"):
            told = asked_as(open_to_all.url, host)
            assert (told.status_code, told.json()["error"]["code"]) == (421, "misdirected_request"), host
            assert "--allow-host" in told.json()["error"]["message"]
        for path in ("/", "/metrics", "/ready"):
            assert requests.get(open_to_all.url + path, headers={"Host": "evil.example"}, timeout=10).status_code == 421
    assert asked_as(served.url, "whoever.example").status_code == 200  # a key keeps strangers out by itself
