import pytest
from tiny_campaign import write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A tiny base and rows of its domains."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))
