from __future__ import annotations

from collections.abc import Iterator

import objects
import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """``host:port`` of a moto server with one bucket."""
    with objects.s3_server() as server:
        yield server


@pytest.fixture
def s3_uri(s3_server, tmp_path) -> str:
    """A prefix of this test's own."""
    return objects.uri_of(s3_server, tmp_path.name)
