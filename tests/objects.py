"""A real S3 server in a process of its own, for whatever has to hold on an object store as well."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """``host:port`` of a moto server with one bucket; whatever this process starts has the credentials."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= CREDENTIALS
    command = [sys.executable, __file__, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the moto server did not start within 60 s"
                time.sleep(0.1)
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def uri_of(server: str, prefix: str) -> str:
    """A store's URI under ``prefix`` on that server."""
    return f"s3://{BUCKET}/{prefix}?endpoint_override={server}&scheme=http&region=us-east-1"


def serve(port: int) -> None:
    """Moto looks whether an object is there and makes it in two steps: two threads may both find none. S3 does not."""
    from moto.server import DomainDispatcherApplication, create_backend_app  # noqa: PLC0415 - a second of imports
    from werkzeug.serving import make_server  # noqa: PLC0415

    s3, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def atomic(environ: dict[str, Any], start_response: Any) -> Any:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return s3(environ, start_response)
        with one_at_a_time:
            return s3(environ, start_response)

    make_server("127.0.0.1", port, atomic, threaded=True).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
