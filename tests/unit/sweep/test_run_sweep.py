"""The sweep on real Ray actors: it finishes what was asked, whoever dies on the way, and resumes from its parts.

The evaluator here computes a loss from row and mask; the real one, on a model, is tested where it lives.
"""

import gc
import os
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle

from bs_cluster.config.schema import SweepSection
from bs_cluster.data.encode import EncodedRow
from bs_cluster.errors import ClusterResourceError
from bs_cluster.store import SweepArea
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.sweep import parts
from bs_cluster.sweep.combinations import all_masks
from bs_cluster.sweep.outcomes import OutcomeTable, RowLoss
from bs_cluster.sweep.parts import PartWriter
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.shards import read_shards
from bs_cluster.sweep.sweep import encode_prompts, generate, measure, run_sweep, score_gates

pytestmark = pytest.mark.ray

DOMAINS = ("chat", "code", "math")
SETTINGS = SweepSection(batch_tokens=60, max_retries=2)


def loss_of(row: EncodedRow, weights) -> RowLoss:
    share = sum((d + 1) * weight for d, weight in enumerate(weights)) / 10
    return RowLoss(nll=row.completion_length * (1 + sum(row.input_ids) % 7 / 10 - share), tokens=row.completion_length)


class FormulaEvaluator:
    """Leaves a mark in ``folder`` for each row scored, if ``marks``. ``fatal`` ends the process at its first batch,
    once or always; ``fits`` rows at most go into its memory.
    """

    def __init__(self, folder: str, fatal: str = "never", fits: int = 1000, marks: bool = True):
        self.folder, self.fatal, self.fits, self.marks = Path(folder), fatal, fits, marks

    def score(self, rows, weights):
        died = self.folder / "died"
        if self.fatal == "always" or (self.fatal == "once" and not died.exists()):
            died.touch()
            os._exit(1)
        if len(rows) > self.fits:
            raise torch.OutOfMemoryError(f"{len(rows)} rows do not fit")
        for row, weight in zip(rows if self.marks else (), weights, strict=self.marks):
            (self.folder / f"scored_{row.id}_{weight}_{time.monotonic_ns()}").touch()
        return [loss_of(row, weight) for row, weight in zip(rows, weights, strict=True)]

    def encode(self, prompts, pooled):
        return [np.full(2 if pooled else (len(prompt), 2), prompt[0], dtype=np.float32) for prompt in prompts]

    def answer(self, prompts, weights):
        if not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os._exit(1)
        (self.folder / f"answered_{len(prompts)}_{time.monotonic_ns()}").touch()
        return [f"{prompt[0]} under {weight}" for prompt, weight in zip(prompts, weights, strict=True)]

    def stall(self, items):
        time.sleep(60)


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    # Workers cannot import a test module: send its classes along.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def start(tmp_path):
    """Starts one evaluator; all are ended after the test, so that their CPUs are free for the next."""
    started = []

    def start(max_restarts: int = 0, **how):
        actor = ray.remote(FormulaEvaluator).options(num_cpus=0, max_restarts=max_restarts)
        started.append(actor.remote(str(tmp_path), **how))
        return started[-1]

    yield start
    for evaluator in started:
        ray.kill(evaluator)


@pytest.fixture
def rows() -> list[EncodedRow]:
    lengths = np.random.default_rng(0).integers(4, 20, size=9)
    return [
        EncodedRow(tuple(range(i, i + length)), prompt_length=2, id=f"q{i}", domain=DOMAINS[i % 3])
        for i, length in enumerate(lengths.tolist())
    ]


@pytest.fixture
def area(tmp_path) -> SweepArea:
    return SweepArea(LocalFiles(tmp_path / "store"), "sweep/test")


def swept(evaluators, rows, domains, settings, area, on_progress, **how) -> OutcomeTable:
    """All shards of a sweep in one table."""
    table = OutcomeTable([row.id for row in rows], [row.domain for row in rows], domains)
    for shard in run_sweep(evaluators, rows, domains, settings, area, on_progress, **how):
        table.update(shard.table)
    return table


def scored(tmp_path) -> int:
    return len(list(tmp_path.glob("scored_*")))


def assert_complete(table, rows):
    expected = [[loss_of(row, [m >> d & 1 for d in range(3)]) for m in all_masks(3)] for row in rows]
    np.testing.assert_allclose(
        table.loss_BC(all_masks(3)), [[loss.nll / loss.tokens for loss in losses] for losses in expected]
    )


def test_a_sweep_measures_all_once_and_reports_progress(rows, area, start, tmp_path):
    progress = []
    table = swept([start(), start()], rows, DOMAINS, SETTINGS, area, lambda *now: progress.append(now))
    assert_complete(table, rows)
    assert scored(tmp_path) == 72
    assert progress[0] == (0, 72)
    assert progress[-1] == (72, 72)
    assert progress == sorted(progress)


def test_an_adaptive_sweep_ends_and_more_can_be_measured_into_it(rows, area, start):
    section = SETTINGS.model_copy(update={"search": "adaptive"})
    evaluator = start()
    table = swept([evaluator], rows, DOMAINS, section, area, lambda *_: None)
    assert set(table.losses(0)) >= {0, 1, 2, 4, 7}
    (shard,) = read_shards(rows, DOMAINS, section, area)
    assert shard.table.to_arrow().equals(table.to_arrow())
    asked = table.missing(all_masks(3))[:1]
    with PartWriter(area) as writer:
        measure([evaluator], shard, asked, section, writer, lambda *_: None)
    ((row, mask),) = asked.tolist()
    assert shard.table.losses(row)[mask] == pytest.approx(loss_of(rows[row], [mask >> d & 1 for d in range(3)]).mean)
    assert area.read(area.parts()).num_rows == len(shard.table) == len(table) + 1


def test_a_killed_sweep_resumes_from_its_parts(rows, area, start, tmp_path):
    class Killed(Exception):
        pass

    def kill_half_way(done, total):
        if done > total / 2:
            raise Killed

    first, second = start(), start()
    with pytest.raises(Killed):
        swept([first], rows, DOMAINS, SETTINGS, area, kill_half_way)
    ray.kill(first)
    time.sleep(0.5)  # its queued call may still have been at work
    kept, before = area.read(area.parts()).num_rows, scored(tmp_path)
    assert 36 < kept < 72
    table = swept([second], rows, DOMAINS, SETTINGS, area, lambda *_: None)
    assert_complete(table, rows)
    assert scored(tmp_path) - before == 72 - kept
    assert swept([second], rows, DOMAINS, SETTINGS, area, lambda *_: None).to_arrow().equals(table.to_arrow())


@pytest.mark.parametrize("search", ["exhaustive", "adaptive"])
def test_outcomes_do_not_hang_on_where_shards_end(search, rows, start, tmp_path):
    section, evaluator = SETTINGS.model_copy(update={"search": search}), start()
    found, spans = [], []
    for shard_outcomes in (1, 20, 1000):
        area = SweepArea(LocalFiles(tmp_path / "store"), f"sweep/{shard_outcomes}")
        shards = list(run_sweep([evaluator], rows, DOMAINS, section, area, lambda *_: None, shard_outcomes))
        spans.append(len(shards))
        assert [place for shard in shards for place in shard.places] == list(range(len(rows)))
        # What one cut has written another one reads.
        again = swept([], rows, DOMAINS, section, area, lambda *_: None, shard_outcomes=50)
        found.append(again.to_arrow())
        assert sum(len(shard.table) for shard in shards) == found[-1].num_rows
    assert spans[0] == len(rows) > spans[1] > spans[2] == 1
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])


def test_progress_over_shards_is_one_count(rows, area, start):
    progress = []
    swept([start()], rows, DOMAINS, SETTINGS, area, lambda *now: progress.append(now), shard_outcomes=20)
    assert (progress[0], progress[-1]) == ((0, 72), (72, 72))
    assert {total for _, total in progress} == {72}
    assert progress == sorted(progress)


def test_a_sweep_killed_between_shards_measures_only_the_others(rows, area, start, tmp_path):
    evaluator = start()
    shards = run_sweep([evaluator], rows, DOMAINS, SETTINGS, area, lambda *_: None, shard_outcomes=24)
    next(shards), next(shards)
    shards.close()
    assert scored(tmp_path) == 48
    held = [shard.held for shard in run_sweep([evaluator], rows, DOMAINS, SETTINGS, area, print, shard_outcomes=24)]
    assert held == [24, 24, 0]
    assert scored(tmp_path) == 72


def test_memory_does_not_grow_with_the_rows(start, tmp_path, monkeypatch):
    """Six times the rows, in parts of which either has several: beside their ids, nothing more is held at a time."""
    monkeypatch.setattr(parts, "PART_OUTCOMES", 800)

    class Made(list):
        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

        def __getitem__(self, i):
            return EncodedRow((i % 7, 1, 2, 3), prompt_length=2, id=f"q{i:06}", domain=DOMAINS[i % 3])

    evaluator = start(marks=False)
    section = SETTINGS.model_copy(update={"batch_tokens": 1000})
    peaks = []
    for count in (150, 300, 1800):  # the first is for what is allocated once
        area = SweepArea(LocalFiles(tmp_path / "store"), f"sweep/{count}")
        gc.collect()
        tracemalloc.start()
        outcomes = sum(
            len(shard.table)
            for shard in run_sweep([evaluator], Made(count), DOMAINS, section, area, lambda *_: None, 1000)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert outcomes == 8 * count
    assert peaks[2] < 1.5 * peaks[1]


def test_an_evaluator_that_dies_and_is_restarted_goes_on(rows, area, start, tmp_path):
    table = swept([start(max_restarts=1, fatal="once")], rows, DOMAINS, SETTINGS, area, lambda *_: None)
    assert_complete(table, rows)
    assert (tmp_path / "died").exists()


def test_the_others_take_over_from_one_that_is_gone(rows, area, start):
    table = swept([start(fatal="always"), start()], rows, DOMAINS, SETTINGS, area, lambda *_: None)
    assert_complete(table, rows)


def test_no_evaluator_left_is_an_error(rows, area, start):
    with pytest.raises(ClusterResourceError, match="every evaluator died"):
        swept([start(fatal="always")], rows, DOMAINS, SETTINGS, area, lambda *_: None)
    with pytest.raises(ClusterResourceError, match=r"sweep\.evaluators"):
        swept([], rows, DOMAINS, SETTINGS, area, lambda *_: None)


def test_a_batch_that_kills_every_evaluator_is_given_up(rows, area, start):
    section = SETTINGS.model_copy(update={"max_retries": 0})
    with pytest.raises(ClusterResourceError, match="ended 1 evaluators"):
        swept([start(max_restarts=-1, fatal="always")], rows, DOMAINS, section, area, lambda *_: None)


def test_a_batch_too_large_for_memory_is_halved(rows, area, start, tmp_path):
    table = swept([start(fits=2)], rows, DOMAINS, SETTINGS, area, lambda *_: None)
    assert_complete(table, rows)
    with pytest.raises(ClusterResourceError, match="one row alone"):
        swept([start(fits=0)], rows, DOMAINS, SETTINGS, SweepArea(LocalFiles(tmp_path / "store"), "other"), print)


def test_a_bug_in_an_evaluator_is_raised_as_it_is(rows, start):
    with pytest.raises(IndexError):
        encode_prompts([start()], [()], SETTINGS, pooled=False)


def test_waiting_has_an_end(start, monkeypatch):
    monkeypatch.setattr("bs_cluster.sweep.pool.POLL_S", 0.1)
    evaluator = start()
    ray.get(evaluator.__ray_ready__.remote())
    pool = EvaluatorPool([evaluator], max_retries=0, stall_s=1)
    with pytest.raises(ClusterResourceError, match="no batch finished for 1 s: 1 at work, 0 queued"):
        list(pool.map(lambda evaluator, items: evaluator.stall.remote(items), [("q",)]))


def test_rows_are_scored_under_gates_of_their_own(rows, start):
    progress = []
    row_N, gates_ND = np.array([4, 0, 4]), np.array([[0.125, 0, 1], [0, 0, 0], [0.5, 0.5, 0]])
    nll_N = score_gates([start(), start()], rows, row_N, gates_ND, SETTINGS, lambda *counts: progress.append(counts))
    assert nll_N.tolist() == [loss_of(rows[row], gates).nll for row, gates in zip(row_N, gates_ND, strict=True)]
    assert progress[-1] == (3, 3)


def test_states_come_back_in_order(rows, start):
    evaluators = [start(), start()]
    prompts = [row.input_ids for row in rows]
    pooled = encode_prompts(evaluators, prompts, SETTINGS, pooled=True)
    assert [(s.shape, float(s[0])) for s in pooled] == [((2,), float(prompt[0])) for prompt in prompts]
    states = encode_prompts(evaluators, prompts, SETTINGS, pooled=False)
    assert [s.shape for s in states] == [(len(prompt), 2) for prompt in prompts]
    assert [float(s[0, 0]) for s in states] == [float(prompt[0]) for prompt in prompts]


def test_answers_come_once_each_under_their_own_gates_though_an_evaluator_dies(start, tmp_path):
    off, some = (0.0, 0.0, 0.0), (0.125, 0.0, 1.0)
    prompts, requests = [[7, 1], [8, 1, 1], [9]], [(0, off), (0, some), (1, off), (2, off), (2, some)]
    settings = SETTINGS.model_copy(update={"answer_batch": 2})
    found = list(generate([start(max_restarts=1)], prompts, requests, settings))
    assert sorted((index, gates) for index, gates, _ in found) == requests
    for index, gates, text in found:
        assert text == f"{prompts[index][0]} under {gates}"
    assert len(list(tmp_path.glob("answered_*"))) == 3
