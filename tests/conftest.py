"""Settings that libraries read when they are imported: before any test, and inherited by every process of theirs."""

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # this session's own, for every cluster that a test starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}

# That a machine does other work is no defect of what it tests.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


class ByCampaign(LoadScopeScheduling):
    """One process runs the tests of a file, and one all of tests/e2e, which look at a campaign that takes a minute."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/e2e" if file.startswith("tests/e2e/") else file


@pytest.hookimpl(optionalhook=True)  # where xdist is off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByCampaign:
    return ByCampaign(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_gpus = [item for item in items if "gpu" in item.keywords]
    if for_gpus:
        import torch  # noqa: PLC0415  # after the settings above

        if not torch.cuda.is_available():
            for item in for_gpus:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
