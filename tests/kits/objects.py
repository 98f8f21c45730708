"""An S3 server on loopback: moto's, behind a door that can refuse or dawdle."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SECRET = "planted-secret-access-key"
_BUSY = b"<Error><Code>SlowDown</Code><Message>planted-access-key</Message></Error>"


class Door:
    """``refusals``: how many requests get 503 before the next is let through. ``delay_s``: before
    each answer. ``asked``: requests so far."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._buckets = itertools.count()
        self.refusals = 0
        self.delay_s = 0.0
        self.asked = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.asked += 1
        time.sleep(self.delay_s)
        if self.refusals > 0:
            self.refusals -= 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_BUSY]
        answer: Iterable[bytes] = self._app(environ, start_response)
        return answer

    def bucket(self) -> str:
        """URL of a new bucket, with a prefix."""
        name = f"bucket{next(self._buckets)}"
        self.s3.create_bucket(Bucket=name)
        return f"s3://{name}/blobs"

    def keys(self, url: str) -> list[str]:
        """Names of all objects below the URL."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        found = self.s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")
        return [entry["Key"].removeprefix(f"{prefix}/") for entry in found.get("Contents", ())]


@contextmanager
def s3_server() -> Iterator[Door]:
    """The server, and the environment that leads to it."""
    door = Door()
    server = make_server("127.0.0.1", 0, door, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", endpoint),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "planted-access-key"),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_REGION", "us-east-1"),
            ("NO_PROXY", "127.0.0.1"),
        ):
            patch.setenv(name, value)
        door.s3 = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        yield door
    server.shutdown()
    server.server_close()
    thread.join()
