"""The one door to MLflow: explicit addresses, short patience, and two kinds of error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException, RestException

from bs_cluster.errors import RegistryError, RegistryUnavailable
from bs_cluster.registry.database import ensure_database

QUIET_S = 20.0  # after a failure, how long calls fail at once instead of waiting for the same silence again
PAGE = 1000
SQLITE = "sqlite:///"

# MLflow's own defaults wait minutes. No retries, because a create retried by the client can duplicate; the next sync
# looks up what is there and does the rest.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# What was there and is gone was wiped; the next attempt looks it up again and creates it anew.
AWAY_CODES = {
    "RESOURCE_DOES_NOT_EXIST",
    "TEMPORARILY_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
}


class Connection:
    """An MLflow tracking server and registry at one URI (``http(s)://…`` or ``sqlite:////absolute/path.db``)."""

    def __init__(self, tracking_uri: str, say: Callable[[str], None] = print):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self.tracking_uri, self._say = tracking_uri, say
        self._database = _sqlite_path(tracking_uri)
        self._client: MlflowClient | None = None
        self._quiet_until = 0.0

    @contextmanager
    def to(self, action: str) -> Iterator[MlflowClient]:
        """The client, for calls that do ``action``. What they raise becomes ``RegistryUnavailable`` when trying again
        later can help, ``RegistryError`` when it cannot."""
        if time.monotonic() < self._quiet_until:
            raise RegistryUnavailable(f"MLflow at {self.tracking_uri} was away a moment ago; cannot {action} now")
        try:
            if self._client is None:
                if self._database is not None:
                    ensure_database(self._database, self._say)
                self._client = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)
            yield self._client
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            if (status := http_status(error)) in (401, 403):
                raise RegistryError(
                    f"MLflow at {self.tracking_uri} does not let us in (HTTP {status}); set MLFLOW_TRACKING_TOKEN, or "
                    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; the store has everything meanwhile"
                ) from error
            if not is_away(error):
                raise RegistryError(f"MLflow at {self.tracking_uri} refused to {action}: {error}") from error
            self._quiet_until = time.monotonic() + QUIET_S
            raise RegistryUnavailable(
                f"MLflow at {self.tracking_uri} is away, cannot {action} ({error}); "
                "nothing is lost, the next sync catches up"
            ) from error

    def try_again(self) -> None:
        """Forget that MLflow was away: the next call really asks."""
        self._quiet_until = 0.0

    def artifact_location(self) -> str | None:
        """Where a new experiment keeps its artifacts: beside the database for sqlite, else the server's choice.
        MLflow's default for sqlite would be a folder under the current directory, another one for every worker."""
        return None if self._database is None else (self._database.parent / "mlartifacts").as_uri()


def check_tracking(tracking_uri: str) -> str:
    """Whether MLflow there answers and lets us in, in words; a database that is not there yet is made by the first
    campaign. Raises RegistryError, RegistryUnavailable."""
    database = _sqlite_path(tracking_uri)
    if database is not None and not database.exists():
        return f"{tracking_uri} will be made"
    with Connection(tracking_uri).to("ask for its experiments") as client:
        client.search_experiments(max_results=1)
    return f"{tracking_uri} answers"


def _sqlite_path(tracking_uri: str) -> Path | None:
    if not tracking_uri.startswith(SQLITE):
        return None
    database = Path(tracking_uri.removeprefix(SQLITE))
    if not database.is_absolute():
        raise RegistryError(
            f"registry.tracking_uri {tracking_uri!r} is a relative path, which means another database for every "
            f"working directory; write {SQLITE}{database.absolute()}"
        )
    return database


def is_away(error: BaseException) -> bool:
    """Whether MLflow could not answer, as opposed to answering no. Looks through the chain of causes, because the
    client wraps connection errors (an ``OSError`` with ``requests`` too) without a code."""
    for link in _causes(error):
        if isinstance(link, RestException):
            return link.get_http_status_code() >= 500 or link.error_code in AWAY_CODES
        if isinstance(link, requests.HTTPError) and link.response is not None:
            return link.response.status_code >= 500 or link.response.status_code == 429
        if isinstance(link, OSError | sqlalchemy.exc.OperationalError):
            return True
        if isinstance(link, MlflowException) and link.error_code in AWAY_CODES:
            return True
    return False


def http_status(error: BaseException) -> int | None:
    """The HTTP status that MLflow, or a proxy before it, answered with; None where there was no answer."""
    for link in _causes(error):
        if isinstance(link, MlflowException):
            return link.get_http_status_code()
        if isinstance(link, requests.HTTPError) and link.response is not None:
            return link.response.status_code
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def all_pages(search: Callable[..., Any], **query: Any) -> list[Any]:
    """Every result of one of the client's paged searches."""
    found, token = [], None
    while True:
        page = search(**query, max_results=PAGE, page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found
