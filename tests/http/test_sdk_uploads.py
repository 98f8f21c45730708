"""A vector's way up: in chunks that fit the network, and no byte twice that has arrived."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import pytest
from aiohttp import web

from client_sdk import Event
from client_sdk.errors import TransportError
from client_sdk.network.transport import Transport
from client_sdk.network.uploads import ChunkPace
from dp.contracts import DeadlineSpec
from secagg.http_api import Mail, Problem, UploadState
from tests.kits.fault_proxy import FaultProxy, Once, Schedule, faulty
from tests.kits.transports import QUICK, Handler, Served, UploadServer, json
from tests.kits.world import QUICK as WORLD_QUICK
from tests.kits.world import TASK, OneHot, World, plain_spec

PATIENT = dataclasses.replace(QUICK, patience_s=20.0, request_s=30.0, transfer_s=30.0)
LARGE = dataclasses.replace(PATIENT, chunk_bytes=1 << 20)


@pytest.mark.parametrize("steady", [False, True])
async def test_a_vector_goes_in_few_chunks_where_the_network_has_lost_nothing(
    steady: bool,
) -> None:
    payload = os.urandom(150_000)
    server = UploadServer(len(payload))
    async with Served(with_mail(server), LARGE) as (_, transport):
        for _ in range(6 if steady else 0):
            await transport.messages("s", 0, 0.0)
        await transport.upload("s", payload)
    assert server.kept == payload
    sizes = [size for _, size in server.chunks]
    assert sizes == ([16_384, 65_536, 68_080] if steady else [16_384] * 5 + [65_536, 2_544])


async def test_a_large_chunk_that_is_refused_at_once_gets_little_of_a_vector() -> None:
    """Nothing was lost before, so a chunk may be most of its vector; from then on it is a part."""
    payload = os.urandom(600_000)
    server = UploadServer(len(payload))
    large = Once(("502",), begins="PUT /v1/sessions/s/vector?offset=81920")
    async with (
        Served(with_mail(server), LARGE) as (served, _),
        faulty(served.address, large, delay_s=0.2) as proxy,
        Transport(f"http://127.0.0.1:{proxy.port}", lambda now_s: "token", LARGE) as transport,
    ):
        for _ in range(6):
            await transport.messages("s", 0, 0.0)
        await transport.upload("s", payload)
    assert server.kept == payload
    assert proxy.met["502"] == 1
    assert proxy.vector < 601_000
    assert {size for _, size in server.chunks[2:-1]} == {600_000 // 16}


async def test_an_upload_goes_on_where_the_server_has_it() -> None:
    payload = os.urandom(150_000)
    server = UploadServer(len(payload))
    server.kept += payload[:100_001]
    async with Served(server, PATIENT) as (_, transport):
        await transport.upload("s", payload)
    assert server.kept == payload
    assert server.chunks[0][0] == 100_001


async def test_a_complete_upload_sends_nothing_again() -> None:
    payload = os.urandom(1_000)
    server = UploadServer(len(payload))
    server.kept += payload
    async with Served(server, PATIENT) as (_, transport):
        await transport.upload("s", payload)
    assert server.chunks == []


async def test_a_network_that_breaks_every_chunk_still_gets_it_across() -> None:
    payload = os.urandom(150_000)
    server = UploadServer(len(payload), break_after=10_000)
    async with Served(server, PATIENT) as (_, transport):
        await transport.upload("s", payload)
    assert server.kept == payload
    assert {size for _, size in server.chunks[:-1]} == {10_000, 4_096}


async def test_a_server_with_senseless_offsets_is_given_up() -> None:
    async def senseless(request: web.Request) -> web.Response:
        return json(UploadState(received_bytes=10**9, complete=False))

    async with Served(senseless) as (_, transport):
        with pytest.raises(TransportError) as caught:
            await transport.upload("s", b"payload")
        assert caught.value.reason == "upload-conflict"


async def test_a_server_that_never_advances_is_given_up() -> None:
    async def stuck(request: web.Request) -> web.Response:
        await request.read()
        return json(UploadState(received_bytes=0, complete=False))

    async with Served(stuck) as (_, transport):
        with pytest.raises(TransportError) as caught:
            await transport.upload("s", b"payload")
        assert caught.value.reason == "upload-conflict"


@pytest.mark.parametrize("damages", [1, 2])
async def test_a_vector_that_was_damaged_is_sent_again_once(damages: int) -> None:
    """On its way, or in the store of a service whose machine crashed: what came is dropped."""
    payload, server, damaged = os.urandom(40_000), UploadServer(40_000), 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal damaged
        answer = await server(request)
        if request.method == "PUT" and len(server.kept) == server.size and damaged < damages:
            damaged += 1
            server.kept.clear()
            return json(Problem(reason="vector-digest", message="Other bytes."), 400)
        return answer

    async with Served(handler, PATIENT) as (_, transport):
        if damages == 1:
            await transport.upload("s", payload)
            assert server.kept == payload
        else:
            with pytest.raises(TransportError, match="Other bytes"):
                await transport.upload("s", payload)
    assert sum(size for _, size in server.chunks) == 2 * len(payload)


async def test_offsets_that_make_no_sense_end_no_run(tmp_path: Path) -> None:
    """The device waits for what its mailbox says of the cohort, and goes on with the next one."""
    told: list[Event] = []
    task = plain_spec(deadlines=DeadlineSpec(report_s=60.0, masked_input_s=3.0))
    async with World(tmp_path, task) as world:
        settings = dataclasses.replace(WORLD_QUICK, patience_s=0.2)
        liar_to = world.device("d0", on_event=told.append, transport=settings)

        async def gate(request: web.Request, _: bytes) -> web.Response | None:
            session = next((event.session for event in told if event.session), "none")
            if request.path.endswith(f"{session}/vector"):
                return json(UploadState(received_bytes=10**9, complete=False))
            return None

        world.gate = gate
        lost = asyncio.create_task(liar_to.run_async(OneHot(0), task=TASK, rounds=1))
        results = await asyncio.gather(
            *(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in (1, 2, 3))
        )
        assert [len(result.releases) for result in results] == [1, 1, 1]
        while "aborted" not in [event.kind for event in told]:
            assert not lost.done()
            await asyncio.sleep(0.01)
        reasons = [event.detail["reason"] for event in told if event.kind == "waiting"]
        assert "upload-conflict" in reasons
        assert not lost.done()
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)


async def test_offsets_that_make_sense_again_within_the_phase_lose_no_vector(
    tmp_path: Path,
) -> None:
    told: list[Event] = []
    task = plain_spec(deadlines=DeadlineSpec(report_s=60.0, masked_input_s=60.0))
    async with World(tmp_path, task) as world:
        settings = dataclasses.replace(WORLD_QUICK, patience_s=0.1, poll_s=0.2)
        device = world.device("d0", on_event=told.append, transport=settings)

        def given_up() -> bool:
            return "upload-conflict" in [event.detail.get("reason") for event in told]

        async def gate(request: web.Request, _: bytes) -> web.Response | None:
            session = next((event.session for event in told if event.session), "none")
            if request.path.endswith(f"{session}/vector") and not given_up():
                return json(UploadState(received_bytes=10**9, complete=False))
            return None

        world.gate = gate
        others = (
            world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in (1, 2, 3)
        )
        mine = device.run_async(OneHot(0), task=TASK, rounds=1)
        results = await asyncio.gather(mine, *others)
        assert [len(result.releases) for result in results] == [1] * 4
        assert given_up()


def with_mail(server: UploadServer) -> Handler:
    """The server, with an empty mailbox."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/messages"):
            return json(Mail(messages=()))
        return await server(request)

    return handler


# -- over a bad network -------------------------------------------------------------------------


async def sent_through(fault: str, rate: float, seed: int, size: int, **parts: float) -> FaultProxy:
    """A vector's way through a proxy, to a server that must have it in the end."""
    payload = os.urandom(size)
    server = UploadServer(size)
    async with (
        Served(server, PATIENT) as (served, _),
        faulty(served.address, Schedule((fault,), rate, seed), **parts) as proxy,
        Transport(f"http://127.0.0.1:{proxy.port}", lambda now_s: "token", PATIENT) as transport,
    ):
        await transport.upload("s", payload)
    assert server.kept == payload
    return proxy


@pytest.mark.parametrize("fault", ["cut", "lost-answer", "duplicate"])
async def test_what_arrived_is_not_sent_again(fault: str) -> None:
    """Also not by aiohttp, which would repeat a PUT whose connection died under its answer."""
    proxy = await sent_through(fault, 0.5, seed=1, size=300_000)
    assert proxy.met[fault] > 3
    assert proxy.vector == 300_000


@pytest.mark.parametrize("fault", ["502", "portal"])
async def test_what_refuses_at_once_gets_little_of_a_vector(fault: str) -> None:
    proxy = await sent_through(fault, 0.4, seed=2, size=600_000, delay_s=0.2)
    assert proxy.met[fault] > 3
    assert proxy.vector < 1.1 * 600_000


async def test_the_server_is_asked_how_far_it_is_before_anything_is_sent_again() -> None:
    """Also where the first question is lost as well."""
    payload, server = os.urandom(100_000), UploadServer(100_000)
    lost = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal lost
        answer = await server(request)
        if server.chunks and lost < 3:
            lost += 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    async with Served(handler, PATIENT) as (served, transport):
        await transport.upload("s", payload)
        asked = [request.method for request in served.requests]
    assert server.kept == payload
    assert asked[:5] == ["GET", "PUT", "GET", "GET", "GET"]
    assert sum(size for _, size in server.chunks) == len(payload)


def test_a_chunk_is_a_small_part_of_its_vector_and_fits_the_rate() -> None:
    settings = dataclasses.replace(QUICK, chunk_bytes=1 << 20, request_s=8.0, transfer_s=80.0)
    pace = ChunkPace(settings)

    def size(*, steady: bool = False) -> int:
        return pace.size(975_000, steady=steady)

    assert (size(), size(steady=True), pace.within_s()) == (16_384, 16_384, 8.0)
    for _ in range(4):
        pace.took(size(steady=True), 0.01)
    assert (size(), size(steady=True)) == (975_000 // 16, 1 << 20)
    pace.took(60_000, 6.0)  # 10 kB/s, and a chunk should take a second
    assert size() == size(steady=True) == 10_000
    pace.took(10_000, 100.0)
    assert size() == 4_096
    pace.took(4_096, 0.001)
    pace.broke()
    assert size(steady=True) == 4_096


def test_a_chunk_is_waited_for_as_long_as_its_rate_lets_expect() -> None:
    pace = ChunkPace(dataclasses.replace(QUICK, request_s=24.0, transfer_s=80.0))
    pace.took(16_384, 0.1)
    assert pace.within_s() == 4.0
    waits = []
    for _ in range(4):
        pace.broke()
        waits.append(pace.within_s())
    assert waits == [8.0, 16.0, 24.0, 24.0]
    pace.took(4_096, 1.0)
    assert pace.within_s() == pytest.approx(24.0, rel=0.01)


async def test_a_stalled_chunk_is_repeated_within_its_phase() -> None:
    payload, server, stalled = os.urandom(50_000), UploadServer(50_000), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "PUT" and not stalled.is_set():
            stalled.set()
            await asyncio.Event().wait()
        return await server(request)

    async with Served(handler, PATIENT) as (_, transport):
        async with asyncio.timeout(PATIENT.request_s):
            with transport.within(0.2):
                await transport.upload("s", payload)
    assert server.kept == payload
