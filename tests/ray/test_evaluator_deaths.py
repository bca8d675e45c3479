"""A sweep on the real evaluators, a tiny NF4 base with stacks in each, one of which is killed on the way."""

import os
import signal
import time

import pytest
import ray
from ray.exceptions import RayActorError
from tiny_campaign import campaign, commit_random_stacks, write_inputs

from bs_cluster.campaign.campaign import Campaign
from bs_cluster.campaign.encoding import encode_domains
from bs_cluster.campaign.measure import isolated_rows
from bs_cluster.inference.generate import Drawing, drawn_tokens, greedy_tokens
from bs_cluster.inference.scoring import score_routed
from bs_cluster.inference.stacked import stack_config
from bs_cluster.records import StackId
from bs_cluster.store import Store
from bs_cluster.sweep.combinations import all_masks, mask_weights
from bs_cluster.sweep.evaluators import start_evaluators, stop_evaluators
from bs_cluster.sweep.pool import EvaluatorPool
from bs_cluster.sweep.sweep import run_sweep
from bs_cluster.training.rollouts import policy_now

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DOMAINS = ("aa", "bb")


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = write_inputs(tmp_path_factory.mktemp("inputs"))
    return campaign(folder, folder / "store", DOMAINS, sweep={"batch_tokens": 128})


@pytest.fixture(scope="module")
def store(config):
    return Store(config.store.uri, config.campaign)


@pytest.fixture(scope="module")
def here(config, store, tmp_path_factory):
    """The same stacks in this process."""
    return commit_random_stacks(config, store, tmp_path_factory.mktemp("staged"))


@pytest.fixture(scope="module")
def rows(config):
    return encode_domains(Campaign.of(config))


@pytest.fixture(scope="module")
def evaluators(config, here):
    started = start_evaluators(config)
    yield started
    stop_evaluators(started)


@pytest.fixture(scope="module")
def sweep(config, store, evaluators, rows):
    """Runs a sweep into its own area; ``disturb(done)`` is called whenever outcomes came in."""
    sweep_rows = [row for domain in DOMAINS for row in rows[domain].sweep]

    def sweep(name: str, disturb=lambda done: None):
        area = store.sweep_area(name * 8)
        shards = run_sweep(evaluators, sweep_rows, DOMAINS, config.sweep, area, lambda done, total: disturb(done))
        (shard,) = shards
        return shard.table

    return sweep


@pytest.fixture(scope="module")
def undisturbed(sweep):
    return sweep("undisturbed")


def pid_of(evaluator, timeout_s: float = 60.0) -> int:
    """Waits for an evaluator that is being restarted."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ray.get(evaluator.pid.remote(), timeout=timeout_s)
        except RayActorError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_every_row_is_measured_under_every_combination(undisturbed, rows):
    count = sum(len(rows[domain].sweep) for domain in DOMAINS)
    assert len(undisturbed) == 4 * count
    assert sorted(undisturbed.masks()) == sorted(all_masks(2))


def test_outcomes_are_those_of_the_same_stacks_here(undisturbed, here, rows):
    row = rows["aa"].sweep[0]
    index = undisturbed.row_ids.index(row.id)
    for mask, loss in undisturbed.losses(index).items():
        alone = score_routed(here, [row], [mask_weights(mask, 2)], DOMAINS)[0]
        assert loss == pytest.approx(alone.mean, rel=2e-2)  # bf16, and padded beside other rows
    assert len(set(undisturbed.losses(index).values())) == 4


def test_killing_an_evaluator_mid_sweep_changes_nothing(sweep, undisturbed, evaluators):
    pids = [pid_of(evaluator) for evaluator in evaluators]
    killed = []

    def kill_one(done: int):
        if done and not killed:
            killed.append(pids[0])
            os.kill(pids[0], signal.SIGKILL)

    table = sweep("disturbed", kill_one)
    assert killed
    assert table.to_arrow().equals(undisturbed.to_arrow())
    assert pid_of(evaluators[0]) != pids[0]
    assert pid_of(evaluators[1]) == pids[1]


def test_isolated_losses_survive_a_death_too(config, evaluators, rows):
    before = isolated_rows(Campaign.of(config), evaluators, rows)
    os.kill(pid_of(evaluators[1]), signal.SIGKILL)
    assert isolated_rows(Campaign.of(config), evaluators, rows) == before


def test_evaluators_answer_as_the_process_that_learns(config, here, evaluators, rows):
    """Drawn from the same seeds, under stacks that fire there and one that learns there, at each of its states."""
    prompts = [list(row.input_ids[: row.prompt_length]) for row in rows["aa"].validation]
    seeds, how = list(range(len(prompts))), Drawing(8, 1.0)
    learning = here.begin(stack_config(config.stack, StackId("aa", 9), 0), seed=5)
    here.fire(["bb_r1"], train=learning)
    here.base.model.eval()
    batches = [list(range(len(prompts)))[half::2] for half in (0, 1)]
    for spread in (0.0, 0.3):
        for site in here.tuner.sites:
            site.stack_B[learning].data.fill_(spread)
        policy = policy_now(here)
        for drawn_from in (seeds, None):

            def call(evaluator, batch, own=drawn_from, policy=policy):
                given = None if own is None else [own[i] for i in batch]
                return evaluator.draw.remote([prompts[i] for i in batch], given, how, policy)

            for batch, told in EvaluatorPool(evaluators, max_retries=3).map(call, batches):
                asked = [prompts[i] for i in batch]
                if drawn_from is None:
                    assert told == greedy_tokens(here, asked, how.tokens)
                else:
                    assert told == drawn_tokens(here, asked, [seeds[i] for i in batch], how.tokens, how.temperature)
    here.drop(learning)
    here.fire(here.names)
