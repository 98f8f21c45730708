"""Blobs as objects of an S3-compatible store, through obstore.

Each request has a deadline and is tried again with growing pauses for a bounded time. What the
store then says is told without its own text, which may name access keys.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import tenacity

from aggregator.store.blobs import Arriving, BlobMissing, Blobs, BlobsUnavailable, Readable
from secagg.errors import ConfigurationError

if TYPE_CHECKING:
    from obstore.store import S3Store

_T = TypeVar("_T")
_PIECE_BYTES = 16 << 20  # of one request for a large object
_IN_MEMORY_BYTES = 1 << 20  # of what arrives; the rest waits in a file without a name
_INNER = re.compile("[0-9]+")
_WRONG = {  # of obstore: asking again changes nothing
    "PermissionDeniedError": "Let the credentials read, write, list and delete in the bucket.",
    "UnauthenticatedError": "Check the credentials (AWS_ACCESS_KEY_ID and others).",
    "InvalidPathError": "This is a defect; please report it.",
}


def checked_url(url: str) -> str:
    """``s3://bucket`` or ``s3://bucket/prefix``.

    Raises:
        ValueError: anything else; credentials in a URL end up in logs.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ValueError("s3://bucket or s3://bucket/prefix")
    if "@" in parts.netloc or ":" in parts.netloc:
        raise ValueError("a URL without credentials or port: those come from AWS_... variables")
    return url


class ObjectStore(Blobs):
    """Blobs below one prefix of a bucket. Credentials and endpoint are those of the environment."""

    def __init__(
        self,
        url: str,
        waiting: Path | None = None,
        *,
        patience_s: float = 30.0,
        timeout_s: float = 20.0,
    ) -> None:
        """
        Args:
            url: as :func:`checked_url`.
            waiting: folder on whose disk waits what arrives; None: the system's for such files,
                which may be memory.
            patience_s: for how long one request is tried again.
            timeout_s: deadline of one try.

        Raises:
            ConfigurationError: ``objects-dependency``, ``blobs-unencrypted``.
        """
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import S3Store
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "objects-dependency",
                f"An object store needs the package {error.name}, which is not installed.",
                remedy="pip install 'secagg[objects]'",
            ) from error
        self._api: Any = obstore
        self._error = BaseError
        self._waiting = None if waiting is None else str(waiting)
        self._patience_s = patience_s
        self._store: S3Store = S3Store.from_url(
            url,
            client_options={
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=min(timeout_s, 5.0)),
                "allow_http": _plain_allowed(),
            },
            retry_config={"max_retries": 0},  # tried again here, where it is bounded and told
        )

    def demand_answer(self) -> None:
        """
        Raises:
            ConfigurationError: ``blobs-unreachable``.
        """
        try:
            self.folders("")
        except BlobsUnavailable as error:
            raise ConfigurationError(
                "blobs-unreachable",
                f"The store of blob_url did not answer: {error.why}.",
                remedy=f"{error.remedy} Check blob_url and AWS_ENDPOINT_URL.",
            ) from None

    def put(self, name: str, data: bytes | memoryview) -> None:
        self._ask("write", name, lambda: self._api.put(self._store, name, data))

    def get(self, name: str) -> bytes:
        def whole() -> tuple[int, bytes]:
            found = self._api.get(self._store, name)
            size = found.meta["size"]
            return size, bytes(found.bytes()) if size <= _PIECE_BYTES else b""

        size, data = self._ask("read", name, whole)
        if size <= _PIECE_BYTES:
            return data
        pieces = range(0, size, _PIECE_BYTES)
        return b"".join(self.part(name, at, min(_PIECE_BYTES, size - at)) for at in pieces)

    def part(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, both inside the object."""

        def ask() -> bytes:
            return bytes(self._api.get_range(self._store, name, start=start, length=length))

        return self._ask("read", name, ask)

    def open(self, name: str) -> Readable:
        size = self._ask("read", name, lambda: self._api.head(self._store, name)["size"])
        return _Object(self, name, size)

    def exists(self, name: str) -> bool:
        try:
            self._ask("read", name, lambda: self._api.head(self._store, name))
        except BlobMissing:
            return False
        return True

    def delete(self, name: str) -> None:
        self._delete([name])

    def sizes(self, folder: str) -> dict[str, int]:
        def listed() -> dict[str, int]:
            stream = self._api.list(self._store, prefix=folder, chunk_size=1_000)
            return {found["path"]: found["size"] for piece in stream for found in piece}

        found = self._ask("list", folder, listed)
        inner = {path[len(folder) + 1 :]: size for path, size in found.items()}
        return {name: size for name, size in inner.items() if _in_reach(name)}

    def folders(self, folder: str) -> list[str]:
        def listed() -> list[str]:
            found = self._api.list_with_delimiter(self._store, prefix=folder or None)
            return [prefix.rsplit("/", 1)[-1] for prefix in found["common_prefixes"]]

        return self._ask("list", folder, listed)

    def clear(self, folder: str, names: re.Pattern[str]) -> None:
        found = self.sizes(folder)
        self._delete([f"{folder}/{n}" for n in found if names.fullmatch(n.rsplit("/", 1)[-1])])

    def arriving(self, folder: str) -> Arriving:
        return _ArrivingObject(self, self._waiting)

    def put_file(self, name: str, file: Any) -> None:
        def put() -> None:
            file.seek(0)
            self._api.put(self._store, name, file)

        self._ask("write", name, put)

    def _delete(self, names: list[str]) -> None:
        if names:
            with contextlib.suppress(BlobMissing):  # S3 itself says nothing of it
                self._ask("delete", names[0], lambda: self._api.delete(self._store, names))

    def _ask(self, what: str, name: str, request: Callable[[], _T]) -> _T:
        """
        Raises:
            BlobMissing: there is no such object.
            BlobsUnavailable: the store did not do it in time, or refused.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_pass),
            stop=tenacity.stop_after_delay(self._patience_s),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            reraise=True,
        )
        try:
            return retrying(request)
        except FileNotFoundError:
            raise BlobMissing(name) from None
        except self._error as error:
            raise _told(f"{what} {name.partition('/')[0] or 'the bucket'}", error) from None

    def _may_pass(self, error: BaseException) -> bool:
        """Whether the same request may succeed later; not what the store answers for good."""
        if not isinstance(error, self._error) or type(error).__name__ in _WRONG:
            return False
        status = _status(error)
        return status is None or status in (408, 429) or status >= 500


class _Object:
    def __init__(self, store: ObjectStore, name: str, size: int) -> None:
        self._store = store
        self._name = name
        self._at = 0
        self.size = size

    def seek(self, offset: int, /) -> object:
        self._at = offset
        return offset

    def read(self, size: int, /) -> bytes:
        size = min(size, self.size - self._at)
        if size <= 0:
            return b""
        data = self._store.part(self._name, self._at, size)
        self._at += len(data)
        return data

    def close(self) -> None:
        """There is nothing to close."""


class _ArrivingObject(Arriving):
    def __init__(self, store: ObjectStore, waiting: str | None) -> None:
        super().__init__()
        self._store = store
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115  until close
            _IN_MEMORY_BYTES, dir=waiting
        )

    def write(self, data: bytes | bytearray) -> None:
        self._file.write(data)
        self.size += len(data)

    def keep(self, name: str) -> None:
        self._store.put_file(name, self._file)

    def close(self) -> None:
        self._file.close()


def _plain_allowed() -> bool:
    """Whether vectors and models may go to the store without TLS; raises as ObjectStore."""
    allowed = os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"
    endpoints = (os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    if not allowed and any(each.lower().startswith("http://") for each in endpoints):
        raise ConfigurationError(
            "blobs-unencrypted",
            "The object store's endpoint has no TLS.",
            expected="https://...",
            found="http://...",
            remedy="Use https, or set AWS_ALLOW_HTTP=true in a network that nobody else reads.",
        )
    return allowed


def _in_reach(name: str) -> bool:
    *folders, _ = name.split("/")
    return not folders or (len(folders) == 1 and _INNER.fullmatch(folders[0]) is not None)


def _status(error: BaseException) -> int | None:
    found = re.search(r"status code: ([1-5][0-9]{2})\b", str(error))
    return None if found is None else int(found[1])


def _told(what: str, error: Exception) -> BlobsUnavailable:
    """Its kind, S3's own code and the HTTP status: words that hold no secret."""
    kind, text = type(error).__name__, str(error)
    code, status = re.search(r"<Code>(\w{1,64})</Code>", text), _status(error)
    shown = [kind]
    if code:
        shown.append(code[1])
    if status is not None:
        shown.append(f"status {status}")
    elif "kind: Timeout" in text:
        shown.append("timed out")
    elif "kind: Connect" in text:
        shown.append("no connection")
    remedy = _WRONG.get(kind, "Check that the store is up and reachable.")
    return BlobsUnavailable(what, ", ".join(shown), remedy)
