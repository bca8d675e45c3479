"""Settings that libraries read when they are imported: before any test, and inherited by every process of theirs."""

import os

import pytest

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture(scope="session")
def local_ray():
    """A Ray of two CPUs that every test of this process shares; each leaves it without actors of its own."""
    import ray  # noqa: PLC0415  # seconds, for those that need it

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
