"""What is told of a training that Ray Train gave up."""

from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerGroupStartupTimeoutError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from bs_cluster.errors import ClusterResourceError, DataError, TrainingError
from bs_cluster.training.launch import what_failed


def test_a_worker_s_own_error_is_told_as_it_is():
    ours = DataError("domain aa: no rows")
    failures = {0: RuntimeError("NCCL gave up"), 1: UserExceptionWithTraceback(ours, "Traceback …")}
    assert what_failed(WorkerGroupError("text", failures), 600) is ours


def test_another_s_error_is_one_line_a_rank():
    failures = {1: ValueError("first\nlast"), 0: UserExceptionWithTraceback(MemoryError("none left"), "Traceback …")}
    told = what_failed(WorkerGroupError("text", failures), 600)
    assert isinstance(told, TrainingError)
    assert str(told).endswith("rank 0: MemoryError: none left; rank 1: ValueError: last")


def test_workers_that_never_came_up_name_the_setting():
    told = what_failed(ControllerError(WorkerGroupStartupTimeoutError(4)), 600)
    assert isinstance(told, ClusterResourceError)
    assert "within 600 s" in str(told)
    assert "training.start_timeout_s" in str(told)
