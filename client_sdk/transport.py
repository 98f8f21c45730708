"""HTTP to the aggregator: retries, deadlines, size caps, resumable transfers, own access tokens.

Everything that a server can send is capped, parsed strictly, and becomes a value or a
``TransportError``; nothing here decides what is true. Retries (exponential back-off with
jitter) cover refused connections, broken transfers, 408, 429 and 5xx, for as long as the patience
lasts without progress; every request is safe to repeat.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
import tenacity

from client_sdk.errors import StateError, TransportError
from secagg.api import (
    ACCESS_TOKEN_MAX_S,
    AdvertAccepted,
    Mail,
    Offer,
    Problem,
    ServerInfo,
    UploadState,
)
from secagg.limits import MANIFEST_BYTES_MAX
from secagg.messages import FRAME_BYTES_MAX

_T = TypeVar("_T")
_OCTETS = {"Content-Type": "application/octet-stream"}
_PROBLEM_BYTES_MAX = 16_384
_OFFER_BYTES_MAX = 2 * MANIFEST_BYTES_MAX  # base64
_MAIL_BYTES_MAX = 2 * FRAME_BYTES_MAX + 65_536
LEDGER_BYTES_MAX = 1 << 24  # a tile of 256 entries of at most 64 KiB
_RETRY_AFTER_MAX_S = 30.0
_CHUNK_BYTES_MIN = 1 << 14
_STUCK_MAX = 8  # transfers in a row that bring nothing new


@dataclass(frozen=True)
class TransportSettings:
    """Times in seconds, sizes in bytes.

    Attributes:
        patience_s: how long a request is retried without progress before it fails; a restart of
            the aggregator should fit in.
        request_s: total deadline of one small request, besides the time it asks the server to wait.
        transfer_s: total deadline of one chunk up or one stretch of a model down.
        poll_s: how long one long-poll waits at the server.
        backoff_first_s, backoff_max_s, jitter_s: waits between retries.
        chunk_bytes: size of an upload's chunks.
        user_agent: how the app names itself to the server.
    """

    patience_s: float = 60.0
    request_s: float = 30.0
    transfer_s: float = 300.0
    poll_s: float = 25.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    jitter_s: float = 0.5
    chunk_bytes: int = 1 << 20
    user_agent: str = "secagg-client/1"


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, TransportError):
        return False
    if error.status is None or error.reason == "response-malformed":
        return error.reason in ("unreachable", "deadline", "response-malformed")
    return error.status in (408, 425, 429) or error.status >= 500


class Transport:
    """One aggregator, as one device sees it. Use as an async context manager."""

    def __init__(
        self,
        server: str,
        issue_token: Callable[[int], str],
        settings: TransportSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``issue_token(now_s)`` makes a fresh access token; it is called again when needed."""
        self.settings = settings or TransportSettings()
        self._server = server.rstrip("/")
        self._issue_token = issue_token
        self._clock = clock
        self._skew_s = 0.0  # the server's clock minus ours, learnt from a rejected token
        self._token: str | None = None
        self._token_until = 0.0
        self._chunk_bytes = self.settings.chunk_bytes
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Transport:
        self._http = aiohttp.ClientSession(
            headers={"User-Agent": self.settings.user_agent}, auto_decompress=False
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    # ---- what a device asks

    async def server_info(self) -> ServerInfo:
        return await self._json("GET", "/v1/server", ServerInfo, _PROBLEM_BYTES_MAX, auth=False)

    async def offer(self, task: str, after_version: int | None, wait_s: float) -> Offer:
        """The current offer; with ``after_version`` the server waits for a newer model."""
        query = {} if after_version is None else {"after_version": str(after_version)}
        return await self._json(
            "GET",
            f"/v1/tasks/{quote(task, safe='')}/offer",
            Offer,
            _OFFER_BYTES_MAX,
            query={**query, "wait_s": f"{wait_s:g}"},
            wait_s=wait_s,
        )

    async def post_advert(self, advert: bytes) -> AdvertAccepted:
        return await self._json("POST", "/v1/adverts", AdvertAccepted, _PROBLEM_BYTES_MAX, advert)

    async def messages(self, session: str, after: int, wait_s: float) -> tuple[bytes, ...]:
        """Messages with sequence numbers from ``after`` + 1; empty if none came in time."""
        mail = await self._json(
            "GET",
            f"/v1/sessions/{session}/messages",
            Mail,
            _MAIL_BYTES_MAX,
            query={"after": str(after), "wait_s": f"{wait_s:g}"},
            wait_s=wait_s,
        )
        return mail.messages

    async def post_message(self, session: str, message: bytes) -> None:
        async def post() -> None:
            async with self._request("POST", f"/v1/sessions/{session}/messages", message):
                pass

        await self._retry(post)

    async def upload(self, session: str, payload: bytes) -> None:
        """Upload a vector from where the server has it, until its last byte is acknowledged.

        Raises:
            TransportError: also ``upload-conflict`` if the server's offsets make no sense.
        """
        path = f"/v1/sessions/{session}/vector"
        self._chunk_bytes = self.settings.chunk_bytes
        state = await self._json("GET", path, UploadState, _PROBLEM_BYTES_MAX)
        stuck = 0
        while not state.complete:
            offset = state.received_bytes
            if not 0 <= offset <= len(payload) or stuck > _STUCK_MAX:
                raise TransportError(
                    "upload-conflict",
                    "The server's upload offset does not fit the vector.",
                    expected=f"0..{len(payload)}, rising",
                    found=offset,
                )
            state = await self._retry(lambda: self._put_chunk(path, offset, payload))  # noqa: B023
            stuck = 0 if state.received_bytes > offset else stuck + 1

    async def download_model(self, digest: bytes, size_bytes: int, part: Path) -> None:
        """Append to ``part`` until it has ``size_bytes``; resumes a broken transfer by range.

        The caller checks the digest.
        """
        most, stuck = 0, 0
        while (have := _size(part)) < size_bytes:
            most, stuck = max(most, have), 0 if have > most else stuck + 1
            if stuck > _STUCK_MAX:
                raise TransportError(
                    "model-size",
                    "The model's transfer does not advance.",
                    expected=size_bytes,
                    found=most,
                )
            await self._retry(lambda: self._fetch_range(digest, have, size_bytes, part))
        if have > size_bytes:
            os.unlink(part)
            raise TransportError(
                "model-size", "The model is larger than offered.", expected=size_bytes, found=have
            )

    async def ledger(self, path: str) -> bytes | None:
        """A file of the public ledger (``checkpoint`` or ``tile/...``); None if it is not there."""

        async def get() -> bytes | None:
            try:
                async with self._request("GET", f"/ledger/{path}", auth=False) as response:
                    return await _read_capped(response, LEDGER_BYTES_MAX)
            except TransportError as error:
                if error.status == 404:
                    return None
                raise

        return await self._retry(get)

    # ---- how

    async def _json(
        self,
        method: str,
        path: str,
        kind: type[_T],
        cap: int,
        body: bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        wait_s: float = 0.0,
        auth: bool = True,
    ) -> _T:
        async def once() -> _T:
            async with self._request(
                method, path, body, query=query, wait_s=wait_s, auth=auth
            ) as response:
                return _parse(await _read_capped(response, cap), kind, response.status)

        return await self._retry(once)

    async def _put_chunk(self, path: str, offset: int, payload: bytes) -> UploadState:
        """One chunk; if it broke or the offset was stale, the server's own offset instead.

        After a broken chunk the next ones are smaller: a slow network should still get one across.
        """
        chunk = payload[offset : offset + self._chunk_bytes]
        try:
            async with self._request(
                "PUT", path, chunk, query={"offset": str(offset)}, total_s=self.settings.transfer_s
            ) as response:
                return _parse(
                    await _read_capped(response, _PROBLEM_BYTES_MAX), UploadState, response.status
                )
        except TransportError as error:
            if error.status != 409 and not is_transient(error):
                raise
            self._chunk_bytes = max(_CHUNK_BYTES_MIN, self._chunk_bytes // 2)
            async with self._request("GET", path) as response:
                state = _parse(
                    await _read_capped(response, _PROBLEM_BYTES_MAX), UploadState, response.status
                )
            if state.received_bytes <= offset and not state.complete and error.status != 409:
                raise
            return state

    async def _fetch_range(self, digest: bytes, have: int, size_bytes: int, part: Path) -> None:
        """Append what comes; an error is raised only if nothing came."""
        headers = {"Range": f"bytes={have}-"} if have else {}
        grown = 0
        try:
            async with self._request(
                "GET",
                f"/v1/models/{digest.hex()}",
                headers=headers,
                total_s=self.settings.transfer_s,
            ) as response:
                resumed = response.status == 206
                if not resumed:
                    _truncate(part)
                async for piece in response.content.iter_chunked(1 << 18):
                    _append(part, piece)
                    grown += len(piece)
                    if grown > size_bytes:
                        return
        except TransportError as error:
            if error.status == 416:
                os.unlink(part)
            if not grown:
                raise
            return
        if not grown:
            raise TransportError("unreachable", "The model's transfer was empty.")

    async def _retry(self, once: Callable[[], Awaitable[_T]]) -> _T:
        settings = self.settings
        backoff = tenacity.wait_exponential(
            multiplier=settings.backoff_first_s, max=settings.backoff_max_s
        ) + tenacity.wait_random(0, settings.jitter_s)

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked_s = error.retry_after_s if isinstance(error, TransportError) else None
            return backoff(state) if asked_s is None else min(asked_s, _RETRY_AFTER_MAX_S)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_transient),
            wait=wait_s,
            stop=tenacity.stop_after_delay(settings.patience_s),
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                return await once()
        raise AssertionError("retrying either returns or raises")

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        wait_s: float = 0.0,
        total_s: float | None = None,
        auth: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; yields a response of status 2xx, or raises ``TransportError``.

        A rejected token is made anew once, by the server's clock: a device's may be wrong.
        """
        if self._http is None:
            raise RuntimeError("use the transport as an async context manager")
        total_s = total_s if total_s is not None else self.settings.request_s + wait_s
        try:
            async with asyncio.timeout(total_s):
                for renewed in (False, True):
                    sent = {**(_OCTETS if body is not None else {}), **(headers or {})}
                    if auth:
                        sent["Authorization"] = f"Bearer {self._access_token()}"
                    async with self._http.request(
                        method,
                        self._server + path,
                        params=query,
                        data=body,
                        headers=sent,
                        allow_redirects=False,
                        timeout=aiohttp.ClientTimeout(total=None),
                    ) as response:
                        if response.status == 401 and auth and not renewed:
                            self._token = None
                            self._learn_clock(response)
                            continue
                        if not 200 <= response.status < 300:
                            raise await _problem(response)
                        yield response
                        return
        except TimeoutError as error:
            raise TransportError(
                "deadline", f"{method} {path} took more than {total_s:g} s."
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransportError(
                "unreachable",
                f"{method} {self._server}{path} failed: {type(error).__name__}: {error}.",
                remedy="Check the network and the aggregator's address.",
            ) from error

    def _access_token(self) -> str:
        now_s = self._clock() + self._skew_s
        if self._token is None or now_s > self._token_until:
            self._token = self._issue_token(int(now_s))
            self._token_until = now_s + ACCESS_TOKEN_MAX_S / 2
        return self._token

    def _learn_clock(self, response: aiohttp.ClientResponse) -> None:
        try:
            at = email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError, TypeError, OverflowError):
            return
        self._skew_s = at - self._clock()


def _size(part: Path) -> int:
    return os.path.getsize(part) if os.path.exists(part) else 0


def _truncate(part: Path) -> None:
    _write(part, b"", "wb")


def _append(part: Path, piece: bytes) -> None:
    _write(part, piece, "ab")


def _write(part: Path, piece: bytes, mode: str) -> None:
    try:
        with open(part, mode) as file:
            file.write(piece)
    except OSError as error:
        raise StateError(
            "disk", f"The model cannot be written: {error}.", remedy="Make room on the disk."
        ) from error


async def _read_capped(response: aiohttp.ClientResponse, cap: int) -> bytes:
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > cap:
            raise TransportError(
                "response-too-large",
                f"The answer to {response.url.path} is too large.",
                status=response.status,
                expected=cap,
            )
    return bytes(body)


def _parse(body: bytes, kind: type[_T], status: int) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TransportError(
            "response-malformed",
            f"The answer is not a {kind.__name__}: {error}.",
            status=status,
            remedy="Something between this device and the aggregator may answer in its place.",
        ) from error


async def _problem(response: aiohttp.ClientResponse) -> TransportError:
    """The server's own reason and words where it gave them."""
    retry_after: Any = response.headers.get("Retry-After", "")
    wait_s = float(retry_after) if retry_after.isdigit() else None
    try:
        problem = msgspec.json.decode(
            await _read_capped(response, _PROBLEM_BYTES_MAX), type=Problem
        )
    except (TransportError, msgspec.MsgspecError, ValueError, RecursionError):
        problem = Problem(
            reason=f"http-{response.status}",
            message=f"The server answered {response.status} to {response.url.path}.",
        )
    return TransportError(
        problem.reason,
        problem.message,
        status=response.status,
        retry_after_s=wait_s,
        remedy=problem.remedy,
    )
