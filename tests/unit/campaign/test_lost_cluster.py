"""What Ray says when a cluster goes away under a campaign is told in words; what our own remote code raised is not
hidden behind them."""

import pytest
from ray.exceptions import LocalRayletDiedError, OwnerDiedError, RayTaskError, WorkerCrashedError

from bs_cluster.campaign.connect import loss_in_words
from bs_cluster.errors import ClusterResourceError

OWNER = OwnerDiedError("00" * 28, "127.0.0.1:1", "here")


@pytest.mark.parametrize("error", [LocalRayletDiedError(), WorkerCrashedError(), OWNER], ids=lambda e: type(e).__name__)
def test_a_cluster_that_is_gone_is_told_with_the_way_out(error):
    with pytest.raises(ClusterResourceError, match=r"is gone .*; run the same command to go on"), loss_in_words():
        raise error


def test_a_defect_in_a_task_stays_what_it_is():
    defect = RayTaskError("score", "Traceback …", KeyError("row"))
    with pytest.raises(RayTaskError) as raised, loss_in_words():
        raise defect
    assert raised.value is defect
