"""What differs on GPUs: whole campaigns over NCCL, optimizer state in pinned memory, the base in parts, stacks that
wait in the host's memory. ``make test-gpu``, on a machine that has some."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import job
import pytest
import torch
from tiny_campaign import settings, write_inputs

from bs_cluster.store import Store

pytestmark = [pytest.mark.gpu, pytest.mark.ray]

GPUS = torch.cuda.device_count()


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """Runs one of two domains on as many GPUs as are asked for, evaluators two a GPU; its store and its report."""
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))

    @functools.cache
    def run(name: str, workers: int, **training) -> tuple[Store, dict]:
        folder: Path = tmp_path_factory.mktemp(name)
        given = {"num_workers": workers, "use_gpu": True, "max_rounds": 1, **training}
        wanted = settings(
            inputs,
            folder / "store",
            ("aa", "bb"),
            base={"cache_dequantized": False},
            training=given,
            sweep={"gpus_per_evaluator": 0.5 if workers == 1 else 1},
        )
        done = job.run(job.write_config(folder / "tiny.yaml", wanted), DS_ACCELERATOR="cuda")
        assert done.code == 0, f"{done.out}\n{done.err}"
        report = json.loads((folder / "store/tiny/report/report.json").read_text())
        return Store(str(folder / "store"), "tiny"), report

    return run


@pytest.mark.parametrize("settings", [{}, {"offload_optimizer": True}, {"gradient_checkpointing": True}])
def test_a_campaign_comes_to_its_end(campaign, settings):
    store, report = campaign("one", 1, **settings)
    assert store.verify().sound
    assert store.bundles()
    assert report["isolated_drift_max"] == 0
    assert all(record.isolated < record.base_loss for record in store.domains())


@pytest.mark.skipif(GPUS < 2, reason="one GPU shares nothing out")
def test_the_base_in_parts_makes_the_stacks_of_a_whole_one(campaign):
    (whole, _), (parts, _) = (campaign(f"zero{stage}", 2, zero_stage=stage) for stage in (2, 3))
    for (ref, manifest), (_, other) in zip(whole.stacks(), parts.stacks(), strict=True):
        mine, theirs = (store.load_stack(of).tensors for store, of in ((whole, manifest), (parts, other)))
        for key, tensor in mine.items():
            torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-4, msg=f"{ref.stack.name} {key}")
