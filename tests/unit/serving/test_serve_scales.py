"""``bs_cluster serve --replicas 1:2``: Ray starts another replica when requests pile up, and answers stay the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from serving import replicas, replicated, until
from tiny_bundle import commit_bundle

from bs_cluster.promotion import HAND
from bs_cluster.records import CHAMPION
from bs_cluster.serving.runtime import BundleRuntime

pytestmark = [pytest.mark.ray, pytest.mark.cluster]

CLIENTS, TOKENS = 6, 60
GROWS_WITHIN_S = 150  # Ray Serve waits for half a minute of too much work before it believes it


@pytest.fixture
def cluster():
    ray.init("local", num_cpus=4, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def test_under_load_another_replica_comes_and_every_answer_is_what_it_was(inputs, tmp_path: Path, cluster):
    store = commit_bundle(inputs, tmp_path / "store", ("aa", "bb")).store
    store.promote(1, CHAMPION, HAND, "the first")
    runtime = BundleRuntime(store, store.bundle(store.standing().champion.manifest), "cpu")
    wanted = runtime.answer(["aa alpha12"], None, TOKENS)[0].text
    options = ["--replicas", "1:2", "--max-running", "1", "--max-waiting", "32", "--max-tokens", str(TOKENS)]
    answers: list[str] = []
    enough = threading.Event()
    with replicated(store.uri, tmp_path / "log", cluster, *options) as served:

        def ask_again() -> None:
            with served.client() as client:
                while not enough.is_set():
                    asked = [{"role": "user", "content": "aa alpha12"}]
                    answer = client.chat.completions.create(
                        model="tiny", messages=asked, temperature=0, max_tokens=TOKENS
                    )
                    answers.append(answer.choices[0].message.content)

        assert len(replicas()) == 1
        with ThreadPoolExecutor(CLIENTS) as pool:
            asking = [pool.submit(ask_again) for _ in range(CLIENTS)]
            try:
                until("another replica has come", lambda: len(replicas()) == 2, GROWS_WITHIN_S)
                before = len(answers)
                until("it answers too", lambda: len(answers) > before + 3 * CLIENTS, GROWS_WITHIN_S)
            finally:
                enough.set()
            for one in asking:
                one.result()
    assert set(answers) == {wanted}
