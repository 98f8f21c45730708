"""The transport over real sockets: it retries what may pass, caps what comes, and resumes."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import hashlib
import os
import time
from pathlib import Path

import aiohttp.test_utils
import pytest
from aiohttp import web

from client_sdk.errors import ClockError, TransportError
from client_sdk.network.http import TransportSettings
from client_sdk.network.server_time import ServerTime
from client_sdk.network.transport import Transport
from secagg.http_api import AdvertAccepted, Mail, Problem
from tests.kits.transports import DEVICE, QUICK, Handler, Served, json


def failing_first(times: int, status: int, answer: object, **headers: str) -> Handler:
    seen = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        if seen <= times:
            return json(Problem(reason="busy", message="Busy."), status, **headers)
        return json(answer)

    return handler


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_may_pass_is_retried(status: int) -> None:
    mail = Mail(messages=(b"m",))
    headers = {"Retry-After": "0"} if status == 429 else {}
    async with Served(failing_first(3, status, mail, **headers)) as (served, transport):
        assert await transport.messages("s", 0, 0.0) == (b"m",)
        assert len(served.requests) == 4


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 413, 422])
async def test_the_servers_own_reason_is_told_at_once(status: int) -> None:
    async with Served(failing_first(9, status, None)) as (served, transport):
        with pytest.raises(TransportError) as caught:
            await transport.post_message("s", b"m")
        assert (caught.value.reason, caught.value.status) == ("busy", status)
        assert len(served.requests) == 1


async def test_patience_ends_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """A library in somebody's app, and in commands whose standard output is JSON."""
    quick = TransportSettings(
        patience_s=0.3, backoff_first_s=0.001, backoff_max_s=0.01, jitter_s=0.0
    )
    async with Served(failing_first(10**6, 503, None), quick) as (served, transport):
        with pytest.raises(TransportError) as caught:
            await transport.messages("s", 0, 0.0)
        assert caught.value.status == 503
        assert len(served.requests) > 2
        assert capfd.readouterr() == ("", "")


async def test_a_restarting_server_is_waited_for() -> None:
    app = web.Application()

    async def answer(request: web.Request) -> web.Response:
        return json(Mail(messages=()))

    app.router.add_get(DEVICE + "/messages", answer)
    port = aiohttp.test_utils.unused_port()
    server = aiohttp.test_utils.TestServer(app, port=port)
    transport = Transport(f"http://127.0.0.1:{port}", lambda now_s: "t", QUICK)
    async with transport:
        waiting = asyncio.create_task(transport.messages("s", 0, 0.0))
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()
        await server.start_server()
        assert await waiting == ()
    await server.close()


async def test_nobody_there_is_unreachable_and_says_what_to_check() -> None:
    quick = TransportSettings(patience_s=0.05, backoff_first_s=0.001, jitter_s=0.0)
    port = aiohttp.test_utils.unused_port()
    async with Transport(f"http://127.0.0.1:{port}", lambda now_s: "t", quick) as transport:
        with pytest.raises(TransportError, match="Check the network") as caught:
            await transport.messages("s", 0, 0.0)
        assert caught.value.reason == "unreachable"


async def test_a_silent_server_meets_the_deadline() -> None:
    release = asyncio.Event()

    async def silent(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    quick = TransportSettings(patience_s=0.05, request_s=0.05, backoff_first_s=0.001, jitter_s=0.0)
    async with Served(silent, quick) as (_, transport):
        with pytest.raises(TransportError) as caught:
            await transport.messages("s", 0, 0.0)
        release.set()
        assert caught.value.reason == "deadline"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"<html>Please log in</html>",
        b"[]",
        b'{"messages":[1]}',
        b'{"messages":["not base64!"]}',
        b'{"messages":[],"more":1}',
        b"[" * 100_000,
    ],
)
async def test_garbage_becomes_a_typed_error(body: bytes) -> None:
    async def garbage(request: web.Request) -> web.Response:
        return web.Response(body=body)

    quick = TransportSettings(patience_s=0.02, backoff_first_s=0.001, jitter_s=0.0)
    async with Served(garbage, quick) as (_, transport):
        with pytest.raises(TransportError) as caught:
            await transport.messages("s", 0, 0.0)
        assert caught.value.reason == "response-malformed"


async def test_an_endless_answer_is_cut() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 16))
        except ConnectionError:
            return response

    async with Served(endless) as (_, transport):
        with pytest.raises(TransportError) as caught:
            await transport.post_advert(b"advert")
        assert caught.value.reason == "response-too-large"


async def test_a_redirect_does_not_take_the_token_elsewhere() -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"})

    async with Served(redirect) as (served, transport):
        with pytest.raises(TransportError) as caught:
            await transport.post_message("s", b"m")
        assert (caught.value.reason, caught.value.status) == ("answer-foreign", 307)
        assert {request.path for request in served.requests} == {"/v1/sessions/s/messages"}


def rejecting_at(now_s: float) -> Handler:
    """Rejects the first token, and says that it is ``now_s``."""

    async def handler(request: web.Request) -> web.Response:
        if request.headers["Authorization"] == "Bearer token-1":
            problem = Problem(reason="token-expired", message="Old.")
            return json(problem, 401, Date=email.utils.formatdate(now_s, usegmt=True))
        return json(AdvertAccepted(session="s"))

    return handler


async def test_a_rejected_token_is_made_anew_by_the_servers_clock() -> None:
    now_s = time.time() + 3_600
    async with Served(rejecting_at(now_s)) as (served, transport):
        assert (await transport.post_advert(b"advert")).session == "s"
        assert (await transport.post_advert(b"advert")).session == "s"
        assert served.tokens == 2
        assert abs(served.issued_at - now_s) <= 2


@pytest.mark.parametrize("ahead_s", [2_300_000_000, 7_200, -7_200])
async def test_no_token_is_made_for_a_time_that_is_far_from_the_devices_own(ahead_s: float) -> None:
    async with Served(rejecting_at(time.time() + ahead_s)) as (served, transport):
        with pytest.raises(ClockError) as caught:
            await transport.post_advert(b"advert")
        assert caught.value.reason == "clock-wrong"
        assert served.tokens == 1


async def test_a_token_that_stays_rejected_is_an_error() -> None:
    async with Served(failing_first(9, 401, None)) as (served, transport):
        with pytest.raises(TransportError) as caught:
            await transport.post_advert(b"advert")
        assert caught.value.status == 401
        assert len(served.requests) == 2


async def test_a_token_is_renewed_before_it_ends() -> None:
    now = time.time()

    async def handler(request: web.Request) -> web.Response:
        return json(Mail(messages=()))

    async with Served(handler) as (served, transport):
        transport._http._time = ServerTime(None, lambda: now)
        await transport.messages("s", 0, 0.0)
        await transport.messages("s", 0, 0.0)
        assert served.tokens == 1
        now += 301
        await transport.messages("s", 0, 0.0)
        assert served.tokens == 2


class ModelServer:
    """Serves a file by range, ``stretch`` bytes before the connection breaks."""

    def __init__(self, content: bytes, stretch: int | None = None, ranges: bool = True) -> None:
        self.content = content
        self.stretch = stretch
        self.ranges = ranges
        self.starts: list[int] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        start = request.http_range.start or 0 if self.ranges else 0
        self.starts.append(start)
        rest = self.content[start:]
        response = web.StreamResponse(
            status=206 if "Range" in request.headers and self.ranges else 200
        )
        response.content_length = len(rest)
        await response.prepare(request)
        await response.write(rest if self.stretch is None else rest[: self.stretch])
        if self.stretch is not None and self.stretch < len(rest):
            assert request.transport is not None
            request.transport.close()
        return response


@pytest.mark.parametrize("stretch", [None, 30_000])
async def test_a_model_comes_whole_over_a_breaking_network(
    tmp_path: Path, stretch: int | None
) -> None:
    content = os.urandom(100_000)
    server = ModelServer(content, stretch)
    async with Served(server) as (_, transport):
        await transport.download_model(hashlib.sha256(content).digest(), 100_000, tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == content
    assert server.starts == sorted(server.starts)
    assert len(server.starts) == (1 if stretch is None else 4)


async def test_a_model_goes_on_after_a_restart_of_the_device(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "p").write_bytes(content[:60_000])
    server = ModelServer(content)
    async with Served(server) as (_, transport):
        await transport.download_model(hashlib.sha256(content).digest(), 100_000, tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == content
    assert server.starts == [60_000]


async def test_a_server_without_ranges_begins_anew(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "p").write_bytes(b"x" * 60_000)
    async with Served(ModelServer(content, ranges=False)) as (_, transport):
        await transport.download_model(hashlib.sha256(content).digest(), 100_000, tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == content


async def test_a_model_larger_than_offered_is_cut(tmp_path: Path) -> None:
    async with Served(ModelServer(os.urandom(1_000_000))) as (_, transport):
        with pytest.raises(TransportError) as caught:
            await transport.download_model(bytes(32), 1_000, tmp_path / "p")
    assert caught.value.reason == "model-size"
    assert not (tmp_path / "p").exists()


async def test_a_model_shorter_than_offered_is_given_up(tmp_path: Path) -> None:
    async with Served(ModelServer(os.urandom(500), ranges=False)) as (served, transport):
        with pytest.raises(TransportError) as caught:
            await transport.download_model(bytes(32), 1_000, tmp_path / "p")
        assert caught.value.reason == "model-size"
        assert len(served.requests) < 20


async def test_a_missing_ledger_file_is_none_and_needs_no_token() -> None:
    async with Served(failing_first(1, 404, "x")) as (served, transport):
        assert await transport.ledger("tile/0/000") is None
        assert await transport.ledger("checkpoint") == b'"x"'
        assert served.tokens == 0


@pytest.mark.parametrize("coding", ["gzip", "br"])
async def test_an_answer_in_a_coding_that_was_not_asked_for_is_refused(coding: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(b'"x"')
        return web.Response(body=body, headers={"Content-Encoding": coding})

    async with Served(handler) as (served, transport):
        with pytest.raises(TransportError, match="response-encoded") as caught:
            await transport.ledger("checkpoint")
        assert caught.value.found == coding
        with pytest.raises(TransportError, match="response-encoded"):
            await transport.offer("t", None, 0)
        assert len(served.requests) == 2


async def test_a_ledgers_redirect_is_not_followed() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")

    async with Served(handler) as (served, transport):
        with pytest.raises(TransportError, match=r"status 302.*answer-foreign"):
            await transport.ledger("checkpoint")
        assert {request.path for request in served.requests} == {"/ledger/checkpoint"}
