"""What Ray says when a cluster goes away under a campaign is told in words; what our own remote code raised is not
hidden behind them."""

import errno
import os

import pytest
from ray.exceptions import ActorDiedError, LocalRayletDiedError, OwnerDiedError, RayTaskError, WorkerCrashedError

from bs_cluster.campaign.connect import loss_in_words
from bs_cluster.errors import ClusterResourceError, DiskError

OWNER = OwnerDiedError("00" * 28, "127.0.0.1:1", "here")


@pytest.mark.parametrize("error", [LocalRayletDiedError(), WorkerCrashedError(), OWNER], ids=lambda e: type(e).__name__)
def test_a_cluster_that_is_gone_is_told_with_the_way_out(error):
    with pytest.raises(ClusterResourceError, match=r"is gone .*; run the same command to go on"), loss_in_words():
        raise error


def test_why_an_actor_could_not_begin_is_told():
    cause = RayTaskError("__init__", "Traceback (most recent call last):\n  File x\nValueError: no", ValueError())
    with pytest.raises(ClusterResourceError, match=r"is gone \(ValueError: no\)"), loss_in_words():
        raise ActorDiedError(cause)


def test_a_defect_in_a_task_stays_what_it_is():
    defect = RayTaskError("score", "Traceback …", KeyError("row"))
    with pytest.raises(RayTaskError) as raised, loss_in_words():
        raise defect
    assert raised.value is defect


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_an_evaluator_met_is_told_with_the_way_out(number):
    met = RayTaskError("score", "Traceback …", OSError(number, os.strerror(number), "/data/part"))
    with pytest.raises(DiskError, match=r"^/data/part cannot be read or written"), loss_in_words():
        raise met.as_instanceof_cause()
