"""``bs_cluster serve --replicas`` on a real Ray: what one process answers, from two engines of which one may die."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
import ray
import requests
from serving import START_TIMEOUT_S, free_port, replicas, replicated, until
from tiny_bundle import commit_bundle

from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION
from bs_cluster.serving.runtime import BundleRuntime

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUNNING = 4  # requests that a replica's engine takes; none waits
LONG = 300
FORGOTTEN_S = 4  # by then Ray has dropped a gauge that is not told again


@pytest.fixture(scope="module")
def store(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicated") / "store"
    store = commit_bundle(inputs, folder, ("aa", "bb")).store
    store.promote(1, CHAMPION, HAND, "the first")
    return store


@pytest.fixture(scope="module")
def metrics_url():
    """A Ray of this module's own, whose node tells its metrics there."""
    port = free_port()
    fast = {"metrics_report_interval_ms": 1000}
    ray.init("local", num_cpus=4, _metrics_export_port=port, log_to_driver=False, _system_config=fast)
    yield f"http://127.0.0.1:{port}/metrics"
    ray.shutdown()


@pytest.fixture(scope="module")
def served(store, metrics_url, tmp_path_factory):
    words = ["--replicas", "2", "--max-running", str(RUNNING), "--max-waiting", "0"]
    words += ["--max-tokens", str(LONG), "--reload-every", "0.2"]
    log, cluster = tmp_path_factory.mktemp("replicated") / "log", ray.get_runtime_context().gcs_address
    with replicated(store.uri, log, cluster, *words) as served:
        yield served


@pytest.fixture(scope="module")
def runtime(store):
    return BundleRuntime(store, store.bundle(store.standing().champion.manifest), "cpu")


@pytest.fixture(scope="module")
def endless(runtime):
    """A prompt that the base alone goes on answering, and its answer."""
    for number in range(40):
        text = runtime.answer([f"bb w{number}"], runtime.fixed_gates([], 1), LONG)[0].text
        if len(text) >= LONG // 2:
            return f"bb w{number}", text
    raise AssertionError("every answer ends soon")


def stream(client, prompt: str, new: int = LONG, model: str = "tiny:base"):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=new, stream=True
    )


def said(chunks) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_what_is_answered_is_what_one_process_answers(served, runtime):
    with served.client() as client:
        for prompt in ("aa alpha12", "bb beta3") * 3:
            wanted = runtime.answer([prompt], None, 12)[0]
            answer = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=12
            )
            assert (answer.choices[0].message.content, answer.gates) == (wanted.text, dict(wanted.gates))
            assert said(stream(client, prompt, 12, "tiny")) == wanted.text
    with served.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_one_more_than_all_replicas_take_is_told_to_come_back(served, endless):
    with served.client() as client, ExitStack() as running:
        for _ in range(2 * RUNNING):
            next(iter(running.enter_context(stream(client, endless[0]))))
        with pytest.raises(openai.RateLimitError) as told:
            stream(client, endless[0])
        assert told.value.response.headers["retry-after"] == "1"
    with served.client() as client:  # who left has freed its slot
        until("slots are free", lambda: free(client, endless[0]))


def free(client, prompt: str) -> bool:
    try:
        return bool(said(stream(client, prompt, 2)))
    except openai.RateLimitError:
        return False


def test_a_replica_that_dies_takes_its_own_requests_only_and_is_replaced(served, endless):
    prompt, whole = endless
    before = replicas()
    assert len(before) == 2
    with served.client() as client:
        running = [stream(client, prompt) for _ in range(RUNNING)]
        firsts = [next(iter(one)) for one in running]
        os.kill(before[0], signal.SIGKILL)

        def rest(place: int) -> str | None:
            try:
                return said([firsts[place], *running[place]])
            except Exception:  # of the client's own HTTP library: the connection is gone
                return None

        with ThreadPoolExecutor(RUNNING) as pool:
            ended = list(pool.map(rest, range(RUNNING)))
        assert ended.count(whole) >= 1
        assert ended.count(whole) < RUNNING
        assert said(stream(client, prompt, 5))  # the other one answers at once
        until("another replica has come", lambda: len(set(replicas()) - {before[0]}) == 2, START_TIMEOUT_S)
        assert before[1] in replicas()


def test_every_replica_serves_the_new_champion(served, store, inputs):
    commit_bundle(inputs, Path(store.uri), ("aa", "bb", "cc"))
    store.promote(2, CHAMPION, HAND, "a third domain")
    until("all do", lambda: {served.get("/ready").json()["bundle"] for _ in range(20)} == {2})


def test_metrics_of_each_replica_stay_while_nothing_changes(served, metrics_url):
    def told() -> set[str]:
        text = requests.get(metrics_url, timeout=10).text
        return set(re.findall(r'^ray_bs_cluster_bundle\{.*?replica="(\w+)".*\} 2\.0$', text, flags=re.M))

    time.sleep(FORGOTTEN_S)  # since what is served has changed
    until("both are told", lambda: len(told()) == 2)


def test_a_signal_lets_running_answers_end_and_no_new_one_begin(served, endless):
    prompt, whole = endless
    with served.client() as client:
        running = stream(client, prompt)
        first = next(iter(running))
        served.process.send_signal(signal.SIGTERM)
        until("it stops", lambda: served.get("/ready").status_code == 503)
        with pytest.raises(openai.InternalServerError) as told:
            stream(client, prompt, 3)
        assert (told.value.status_code, told.value.code) == (503, "unavailable")
        assert said([first, *running]) == whole
        assert served.process.wait(60) == 0
        assert replicas() == []
