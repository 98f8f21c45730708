"""A delta's transfer goes on where it broke off, at any byte, and never mixes two deltas."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp.test_utils
import pytest
from aiohttp import web

from client_sdk.errors import StateError, TransportError
from client_sdk.network.deltas import NO_DELTA
from client_sdk.network.http import TransportSettings
from client_sdk.network.transport import Transport

QUICK = TransportSettings(patience_s=1.0, backoff_first_s=0.001, backoff_max_s=0.01, jitter_s=0.001)
MODEL, HELD = b"\1" * 32, b"\2" * 32
WHOLE = 1_000_000


def tag_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@asynccontextmanager
async def serving(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[Transport]:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await answer(request)

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    async with (
        aiohttp.test_utils.TestServer(app) as server,
        Transport(str(server.make_url("/")), lambda now_s: "token", QUICK) as transport,
    ):
        yield transport


class DeltaServer:
    """Serves deltas by range, ``stretch`` bytes before the connection breaks."""

    def __init__(self, *contents: bytes, stretch: int | None = None) -> None:
        self.contents = list(contents)  # of replicas that are asked in turn; the last one stays
        self.stretch = stretch
        self.sent = 0
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        content = self.contents.pop(0) if len(self.contents) > 1 else self.contents[0]
        tag = f'"{tag_of(content)}"'
        goes_on = request.headers.get("If-Range") == tag
        start = (request.http_range.start or 0) if goes_on else 0
        self.asked.append((request.path, start))
        response = web.StreamResponse(status=206 if goes_on else 200, headers={"ETag": tag})
        rest = content[start:]
        if goes_on:
            last = len(content) - 1
            response.headers["Content-Range"] = f"bytes {start}-{last}/{len(content)}"
        response.content_length = len(rest)
        await response.prepare(request)
        shown = rest if self.stretch is None else rest[: self.stretch]
        self.sent += len(shown)
        await response.write(shown)
        if len(shown) < len(rest):
            assert request.transport is not None
            request.transport.close()
        return response


async def test_a_transfer_cut_at_each_byte_sends_none_twice(tmp_path: Path) -> None:
    content = os.urandom(60)
    server = DeltaServer(content, stretch=1)
    async with serving(server) as transport:
        file = await transport.download_delta(MODEL, HELD, WHOLE, None, tmp_path)
    assert file.read_bytes() == content
    assert server.sent == len(content)
    assert server.asked == [
        (f"/v1/deltas/{MODEL.hex()}/{HELD.hex()}", start) for start in range(len(content))
    ]


async def test_a_transfer_goes_on_after_a_restart_of_the_device(tmp_path: Path) -> None:
    content = os.urandom(100)
    part = tmp_path / f"{tag_of(content)}.part"
    for have in (40, 100):
        part.write_bytes(content[:have])
        server = DeltaServer(content)
        async with serving(server) as transport:
            file = await transport.download_delta(MODEL, b"", WHOLE, part, tmp_path)
        assert file.read_bytes() == content
        assert [start for _, start in server.asked] == ([have] if have < 100 else [])


async def test_another_replicas_delta_is_not_put_behind_this_ones_part(tmp_path: Path) -> None:
    one, two = os.urandom(100), os.urandom(120)
    async with serving(DeltaServer(one, two, stretch=60)) as transport:
        file = await transport.download_delta(MODEL, HELD, WHOLE, None, tmp_path)
    assert file.read_bytes() == two
    assert [path.name for path in left_in(tmp_path)] == [f"{tag_of(two)}.part"]


async def test_a_damaged_part_is_refused_and_removed(tmp_path: Path) -> None:
    content = os.urandom(100)
    part = tmp_path / f"{tag_of(content)}.part"
    part.write_bytes(bytes(40))
    async with serving(DeltaServer(content)) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.download_delta(MODEL, HELD, WHOLE, part, tmp_path)
    assert caught.value.reason == "delta-digest"
    assert not part.exists()


async def test_what_is_longer_than_the_model_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(DeltaServer(bytes(5_000))) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.download_delta(MODEL, HELD, 4_999, None, tmp_path)
    assert (caught.value.reason, caught.value.found) == ("delta-malformed", 5_000)
    assert left_in(tmp_path) == []


async def test_a_link_in_the_place_of_a_part_is_not_followed(tmp_path: Path) -> None:
    content, thesis = os.urandom(100), tmp_path / "thesis"
    thesis.write_text("mine")
    (tmp_path / f"{tag_of(content)}.part").symlink_to(thesis)
    async with serving(DeltaServer(content)) as transport:
        with pytest.raises(StateError, match="state-folder-taken"):
            await transport.download_delta(MODEL, HELD, WHOLE, None, tmp_path)
    assert thesis.read_text() == "mine"


async def test_an_aggregator_or_a_proxy_that_knows_no_deltas_is_asked_once(tmp_path: Path) -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(status=404, text="<html>nginx</html>", content_type="text/html")

    async with serving(answer) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.download_delta(MODEL, HELD, WHOLE, None, tmp_path)
    assert (caught.value.reason, asked) == (NO_DELTA, 1)


@pytest.mark.parametrize("tag", [None, '"short"', 'W/"' + "0" * 64 + '"'])
async def test_an_answer_without_a_strong_tag_is_no_delta(tmp_path: Path, tag: str | None) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 90, headers={} if tag is None else {"ETag": tag})

    async with serving(answer) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.download_delta(MODEL, HELD, WHOLE, None, tmp_path)
    assert caught.value.reason == "delta-malformed"
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("form", ["delta", "whole"])
async def test_a_transfer_that_always_begins_anew_ends(tmp_path: Path, form: str) -> None:
    """One byte more each time would come to half of the square of its length."""
    content, answers = os.urandom(300), 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal answers
        answers += 1
        response = web.StreamResponse(headers={"ETag": f'"{tag_of(content)}"'})
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[:answers])
        assert request.transport is not None
        request.transport.close()
        return response

    async with serving(answer) as transport:
        if form == "delta":
            transfer = transport.download_delta(MODEL, HELD, WHOLE, None, tmp_path)
        else:
            transfer = transport.download_model(MODEL, len(content), tmp_path / "part")
        with pytest.raises(TransportError, match="does not advance"):
            await transfer
    assert answers < 20
