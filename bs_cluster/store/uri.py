"""Which files a ``store.uri`` means."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import from_url

from bs_cluster.errors import StoreError
from bs_cluster.store.filesystem import LocalFiles
from bs_cluster.store.remote import RemoteFiles

OBJECT_STORES = ("s3", "gs", "abfs", "abfss")
_OPTIONS = {"endpoint_override", "scheme", "region"}  # pyarrow's names, because Ray Train reads the same URI with it


def open_files(uri: str, folder: str) -> tuple[str, LocalFiles | RemoteFiles]:
    """The files under ``<uri>/<folder>``, and ``uri`` made absolute, so that it means the same on every worker.

    A folder, ``file://``, or an object store: ``s3://bucket/prefix``, ``gs://…``, ``abfss://…``. Credentials come from
    the environment or the machine's role. Raises ``StoreError`` for a URI that holds some, and for any other.
    """
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return str(path), LocalFiles(path / folder)
    parts = urlsplit(uri)
    _check(parts)
    if parts.scheme == "file":
        return uri, LocalFiles(Path(unquote(parts.path)) / folder)
    where = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/{folder}"
    try:
        store = from_url(where, **_settings(parts))
    except (BaseError, ValueError) as error:
        raise StoreError(f"store.uri {where}: {' '.join(str(error).split('Debug source')[0].split())[:300]}") from error
    return uri, RemoteFiles(store, where)


def _check(parts: SplitResult) -> None:
    named = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if parts.scheme not in ("file", *OBJECT_STORES):
        raise StoreError(
            f"store.uri {named!r} is neither a folder nor an object store ({', '.join(OBJECT_STORES)}) that can create "
            "a name only where it is absent; mount it as a POSIX volume, or use one of those"
        )
    # abfss://container@account is no user.
    if "@" in parts.netloc and not (parts.scheme.startswith("abfs") and parts.password is None):
        raise StoreError(
            f"store.uri {named!r} holds credentials, which would be written into records and messages; "
            "give them by the environment (AWS_ACCESS_KEY_ID, …) or the machine's role, and take them out of the URI"
        )
    if unknown := sorted(set(_options(parts)) - _OPTIONS):
        raise StoreError(f"store.uri {named!r} has the options {unknown}; known are {sorted(_OPTIONS)}")


def _options(parts: SplitResult) -> dict[str, str]:
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _settings(parts: SplitResult) -> dict[str, Any]:
    given = _options(parts)
    client = {"timeout": timedelta(seconds=120), "connect_timeout": timedelta(seconds=10)}
    settings: dict[str, Any] = {
        "client_options": client | ({"allow_http": True} if given.get("scheme") == "http" else {}),
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=180)},
    }
    if "region" in given:
        settings["region"] = given["region"]
    if "endpoint_override" in given:
        settings["endpoint"] = f"{given.get('scheme', 'https')}://{given['endpoint_override']}"
    return settings
