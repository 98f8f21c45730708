"""Requests to one aggregator: retries, deadlines, size caps, own access tokens.

Everything that a server can send is capped, parsed strictly, and becomes a value or a
``TransportError``. Retries (exponential back-off with jitter) cover refused connections, broken
transfers, answers of somebody between, 408, 429 and 5xx, for as long as the patience lasts; every
request is safe to repeat.
"""

from __future__ import annotations

import asyncio
import email.utils
import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec
import tenacity

from client_sdk.errors import TransportError, Unreached
from client_sdk.network.connections import Meter, Network, foreign, is_page
from client_sdk.network.server_time import ServerTime
from client_sdk.settings_fields import check_fields, demand_positive
from secagg.http_api import ACCESS_TOKEN_MAX_S, Problem

_T = TypeVar("_T")
_OCTETS = {"Content-Type": "application/octet-stream"}
_RETRY_AFTER_MAX_S = 30.0
_STEADY = 6  # a network that loses 30 % of all requests answers so many in a row once in nine times
_coins = secrets.SystemRandom()  # Python's own generator is watched while a model is tested
_TIME_REASONS = ("token-expired", "token-lifetime", "certificate-expired")
_RETRIED = (
    "unreachable",
    "deadline",
    "answer-foreign",
    "proxy-unreachable",
    "tls-failed",
)  # without an answer of the aggregator's
QUOTED_BYTES = 256
PROBLEM_BYTES_MAX = 16_384


@dataclass(frozen=True)
class TransportSettings:
    """Times in seconds, sizes in bytes.

    Attributes:
        patience_s: how long a request is retried without progress before it fails; a restart of
            the aggregator should fit in.
        request_s: total deadline of one small request, besides the time it asks the server to wait,
            and of one chunk up; in a cohort half of the step that it is for at most.
        transfer_s: total deadline of a vector's last chunk or one stretch of a model down.
        poll_s: how long one long-poll waits at the server.
        backoff_first_s, backoff_max_s, jitter_s: waits between retries.
        chunk_bytes: most of one chunk of an upload. It fits the rate at which the network took the
            chunks before, and is at most a sixteenth of the vector, or 16 KiB, unless the network
            has lost nothing for a while.
        user_agent: how the app names itself to the server.
        ledger_s: total deadline of one look at the ledger, however many files it needs.
        trust_env: whether HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY count.
        ca_file: PEM file of the only certificates of authorities to trust; None: the system's.
        client_certificate: PEM file of the certificate (and those of its authorities) to show to
            an aggregator that asks for one; None: none.
        client_key: PEM file of its key, which nobody else may read; None: it is in the same file.
    """

    patience_s: float = 60.0
    request_s: float = 30.0
    transfer_s: float = 300.0
    poll_s: float = 25.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    jitter_s: float = 0.5
    chunk_bytes: int = 1 << 20
    user_agent: str = "secagg-client/2"  # 1 reads no problem documents
    ledger_s: float = 600.0
    trust_env: bool = True
    ca_file: str | Path | None = None
    client_certificate: str | Path | None = None
    client_key: str | Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        demand_positive(self, "chunk_bytes", "request_s", "transfer_s", "poll_s", "ledger_s")
        if self.backoff_first_s + self.jitter_s == 0 or self.backoff_max_s + self.jitter_s == 0:
            raise ValueError(
                "backoff_first_s, backoff_max_s and jitter_s leave no pause between tries: set "
                "jitter_s above 0, or both others"
            )


def network_of(settings: TransportSettings, meter: Meter | None = None) -> Network:
    """The way out that these settings choose; to be entered. ``meter`` counts what passes."""
    return Network(
        settings.user_agent,
        trust_env=settings.trust_env,
        ca_file=settings.ca_file,
        client_certificate=settings.client_certificate,
        client_key=settings.client_key,
        meter=meter,
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, TransportError):
        return False
    if error.reason == "response-malformed" or (error.unreached and error.reason in _RETRIED):
        return True
    status = error.status
    return status is not None and (status in (408, 425, 429) or status >= 500)


class Http:
    """One server, as one device sees it, over a network that its owner has entered."""

    def __init__(
        self,
        server: str,
        issue_token: Callable[[int], str],
        network: Network,
        settings: TransportSettings | None = None,
        time: ServerTime | None = None,
    ) -> None:
        """``issue_token(now_s)`` makes a fresh access token; it is called again when needed.

        ``time``: what tokens are dated by; None: this device's own clock until the server speaks.
        """
        self.settings = settings or TransportSettings()
        self._server = server.rstrip("/")
        self._issue_token = issue_token
        self._time = time or ServerTime()
        self._token: str | None = None
        self._token_until = 0.0
        self._network = network
        self.most_s = math.inf  # that any one request takes, with its wait at the server
        self._in_a_row = 0  # requests that were answered since one was not

    @property
    def steady(self) -> bool:
        """Whether the network has lost none of the last requests."""
        return self._in_a_row >= _STEADY

    async def json(
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
        """A JSON answer of at most ``cap`` bytes; retried."""

        async def once() -> _T:
            async with self.request(
                method, path, body, query=query, wait_s=wait_s, auth=auth
            ) as response:
                return await read_json(response, kind, cap)

        return await self.retry(once)

    async def retry(self, once: Callable[[], Awaitable[_T]]) -> _T:
        """Repeat ``once`` while its error is transient and the patience lasts."""
        settings = self.settings
        backoff = tenacity.wait_exponential(
            multiplier=settings.backoff_first_s, max=settings.backoff_max_s
        )

        def wait_s(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            asked_s = error.retry_after_s if isinstance(error, TransportError) else None
            if asked_s is not None:
                return min(asked_s, _RETRY_AFTER_MAX_S)
            return backoff(state) + _coins.uniform(0.0, settings.jitter_s)

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
    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        wait_s: float = 0.0,
        total_s: float | None = None,
        pause_s: float = 0.0,
        auth: bool = True,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; yields a response of status 2xx, or raises ``TransportError``.

        A rejected token is made anew once, by the server's clock where that is to be believed.
        ``pause_s``: as :meth:`client_sdk.network.connections.Network.ask`.
        """
        asked = self._asked(method, path, body, query, headers, wait_s, total_s, pause_s, auth)
        try:
            async with asked as response:
                yield response
        except TransportError as error:
            if is_transient(error):
                self._in_a_row = 0
            raise
        self._in_a_row += 1

    @asynccontextmanager
    async def _asked(
        self,
        method: str,
        path: str,
        body: bytes | None,
        query: dict[str, str] | None,
        headers: dict[str, str] | None,
        wait_s: float,
        total_s: float | None,
        pause_s: float,
        auth: bool,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        total_s = total_s if total_s is not None else self.settings.request_s + wait_s
        total_s = min(total_s, self.most_s)
        try:
            async with asyncio.timeout(total_s):
                for renewed in (False, True):
                    sent = {**(_OCTETS if body is not None else {}), **(headers or {})}
                    if auth:
                        sent["Authorization"] = f"Bearer {self._access_token()}"
                    url = self._server + path
                    async with self._network.ask(
                        method, url, body=body, query=query, headers=sent, pause_s=pause_s
                    ) as response:
                        if response.status == 401 and auth and not renewed:
                            self._token = None
                            self._learn_time(response, await _problem(response))
                            continue
                        if not 200 <= response.status < 300:
                            raise await _problem(response)
                        if is_page(response):
                            raise foreign(response, await response.content.read(QUOTED_BYTES))
                        _demand_uncoded(response)
                        yield response
                        return
        except TimeoutError as error:
            raise Unreached("deadline", f"{method} {path} took more than {total_s:g} s.") from error

    def _access_token(self) -> str:
        now_s = self._time.now()
        if self._token is None or now_s > self._token_until:
            self._token = self._issue_token(int(now_s))
            self._token_until = now_s + ACCESS_TOKEN_MAX_S / 2
        return self._token

    def _learn_time(self, response: aiohttp.ClientResponse, problem: TransportError) -> None:
        """
        Raises:
            ClockError: the server rejects the token for its time, and its own is not believed.
        """
        if problem.reason not in _TIME_REASONS:
            return
        try:
            said_s = email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError, TypeError, OverflowError):
            return
        self._time.hear(said_s)


def _demand_uncoded(response: aiohttp.ClientResponse) -> None:
    """
    Raises:
        TransportError: ``response-encoded``.
    """
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise TransportError(
            "response-encoded",
            f"The answer to {response.url.path} is in a coding that was not asked for.",
            status=response.status,
            expected="identity",
            found=coding[:40],
            remedy="Something between this device and the aggregator re-codes what passes.",
        )


async def read_capped(response: aiohttp.ClientResponse, cap: int) -> bytes:
    """The body.

    Raises:
        TransportError: ``response-too-large``.
    """
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


async def read_json(response: aiohttp.ClientResponse, kind: type[_T], cap: int) -> _T:
    """A JSON body of at most ``cap`` bytes as a value of ``kind``, whatever it is labelled as.

    Raises:
        TransportError: ``response-malformed``, ``response-too-large``; ``answer-foreign`` if it is
            labelled as something else.
    """
    body = await read_capped(response, cap)
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if not _is_json(response):
            raise foreign(response, body[:QUOTED_BYTES]) from error
        raise TransportError(
            "response-malformed",
            f"The answer is not a {kind.__name__}: {error}.",
            status=response.status,
            remedy="Something between this device and the aggregator may answer in its place.",
        ) from error


def _is_json(response: aiohttp.ClientResponse) -> bool:
    """As far as it is labelled at all."""
    kind = response.content_type
    return "json" in kind or kind == "application/octet-stream"


async def _problem(response: aiohttp.ClientResponse) -> TransportError:
    """The server's own reason and words; ``answer-foreign`` for what is in no form of its own."""
    body = bytearray()
    while len(body) <= PROBLEM_BYTES_MAX and (piece := await response.content.read(4_096)):
        body += piece
    wait_s = _asked_wait_s(response)
    try:
        problem = msgspec.json.decode(body[:PROBLEM_BYTES_MAX], type=Problem)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return foreign(response, bytes(body[:QUOTED_BYTES]), wait_s)
    return TransportError(
        problem.reason,
        problem.message,
        status=response.status,
        retry_after_s=wait_s,
        remedy=problem.remedy,
    )


def _asked_wait_s(response: aiohttp.ClientResponse) -> float | None:
    """``Retry-After`` in seconds; a date counts from the answer's own."""
    asked = response.headers.get("Retry-After", "")
    if asked.isascii() and asked.isdecimal():
        return float(asked)
    try:
        until = email.utils.parsedate_to_datetime(asked)
        return max(
            0.0,
            until.timestamp()
            - email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp(),
        )
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
