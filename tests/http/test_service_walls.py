"""One caller cannot fill the service: bodies, open requests and connections have caps and ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from aggregator.http import connections
from aggregator.http.app import build_admin_app
from aggregator.http.routes.sessions import _MESSAGE_CAP
from aggregator.settings.options import Settings
from dp.contracts import SegmentSpec
from secagg import http_api
from tests.kits.service import (
    QUIET_S,
    TASK,
    TOKEN,
    Device,
    current_sum,
    devices,
    finished,
    one_hot,
    run,
    served,
    spec,
)
from tests.kits.walls import answered, connect, ended, get, head, port_of, refusals, until


async def before_the_body(server, path: str, token: str, size: int) -> tuple[int, str]:
    """How a request is answered of whose body not a byte was sent."""
    reader, writer = await connect(server)
    writer.write(head("POST", path, token, Content_Length=size))
    status, reason, _ = await answered(reader)
    writer.close()
    return status, reason


@asynccontextmanager
async def device_of(server, number: int):
    device = Device(server, number, one_hot(number))
    async with aiohttp.ClientSession() as device.http:
        yield device


def open_at(server) -> float:
    return server.service.core.metrics.connections._value.get()


# -- bodies are looked at only when their session may speak -----------------------------------


async def test_no_byte_of_a_body_is_read_before_its_session_may_speak(tmp_path):
    async with served(tmp_path, spec()) as server, device_of(server, 0) as device:
        token = await device.token()
        await device.report_in()
        path = f"{device.session}/messages"
        for size in (100, _MESSAGE_CAP):
            assert await before_the_body(server, path, token, size) == (409, "session-waiting")
            unknown = f"/v1/sessions/{'0' * 64}/messages"
            assert await before_the_body(server, unknown, token, size) == (404, "not-found")
            assert await before_the_body(server, path, "garbage", size) == (401, "token-malformed")
            assert await before_the_body(server, "/v1/operator/tasks", token, size) == (
                403,
                "operator-token",
            )
        async with device_of(server, 1) as other:
            foreign = await before_the_body(server, path, await other.token(), 100)
            assert foreign == (403, "session-not-yours")
        too_large = (413, "body-too-large")
        assert await before_the_body(server, "/v1/adverts", token, _MESSAGE_CAP) == too_large
        assert await before_the_body(server, "/v1/operator/tasks", TOKEN, 1 << 26) == too_large


LARGE = {  # before which of its messages a device tries, and how large a body
    "deals": (200_000, "message-not-due"),  # of three neighbours
    "ready": (200_000, "message-not-due"),
    "header": (100_000, "message-not-due"),
    "confirmation": (100_000, "message-not-due"),
    "unmask": (100_000, "message-not-due"),
}


async def test_a_body_is_no_larger_than_what_is_due_in_its_phase(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        seen = {}

        async def try_first(name):
            if name not in LARGE or name in seen:
                return
            size, _ = LARGE[name]
            path, token = f"{fleet[0].session}/messages", await fleet[0].token()
            seen[name] = (await before_the_body(server, path, token, size))[1]
            too_large = await before_the_body(server, path, token, _MESSAGE_CAP + 1)
            assert too_large == (413, "body-too-large")

        fleet[0].hold = try_first
        assert finished(await run(fleet)) == 4
        assert seen == {name: reason for name, (_, reason) in LARGE.items()}
        path, token = f"{fleet[0].session}/messages", await fleet[0].token()
        assert await before_the_body(server, path, token, 100) == (409, "cohort-ended")


async def test_who_is_out_of_the_cohort_has_no_large_message_due(tmp_path):
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        out, seen = fleet[3], []
        out.stop_before = "deals"

        async def try_as_the_one_who_is_out(name):
            if name == "ready":
                path, token = f"{out.session}/messages", await out.token()
                seen.append(await before_the_body(server, path, token, 20_000))

        fleet[0].hold = try_as_the_one_who_is_out
        assert finished(await run(fleet)) == 3
        assert seen == [(409, "message-not-due")]


# -- caps on open requests and on bytes, each and all together --------------------------------


def with_caps(server, **caps: int) -> None:
    """Smaller than a deployment may set them."""
    server.service.intake._settings = server.settings.model_copy(update=caps)


async def test_a_device_with_too_many_requests_open_is_told_to_wait_and_harms_nobody(tmp_path):
    async with (
        served(tmp_path, spec(), device_requests_max=3) as server,
        device_of(server, 0) as eager,
        device_of(server, 1) as calm,
    ):
        poll = head("GET", f"/v1/tasks/{TASK}/offer?after_version=0&wait_s=20", await eager.token())
        polls = [await connect(server) for _ in range(3)]
        for _, writer in polls:
            writer.write(poll)
        await until(lambda: sum(server.service.intake._open.values()) == 3)
        reader, writer = await connect(server)
        writer.write(poll)
        status, reason, headers = await answered(reader)
        assert (status, reason, headers["retry-after"]) == (429, "requests-open", "1")
        assert refusals(server)["requests-open"] == 1
        await calm.report_in()  # several requests
        await server.operator("POST", f"/tasks/{TASK}/pause")  # ends the polls
        for reader, _ in polls:
            assert (await answered(reader))[0] == 200
        await server.operator("POST", f"/tasks/{TASK}/resume")
        await eager.report_in()
        assert not server.service.intake._open
        for _, writer in polls:
            writer.close()


async def test_a_device_that_fills_its_bytes_harms_nobody(tmp_path):
    async with (
        served(tmp_path, spec()) as server,
        device_of(server, 0) as greedy,
        device_of(server, 1) as honest,
    ):
        with_caps(server, device_body_bytes_max=8_000)
        reader, first = await connect(server)
        first.write(head("POST", "/v1/adverts", await greedy.token(), Content_Length=5_000))
        first.write(bytes(100))
        await until(lambda: server.service.intake._held)
        assert await before_the_body(server, "/v1/adverts", await greedy.token(), 5_000) == (
            429,
            "bodies-open",
        )
        await honest.report_in()
        first.write(bytes(4_900))
        assert (await answered(reader))[:2] == (400, "frame-malformed")
        assert not server.service.intake._held  # given back
        await greedy.report_in()
        first.close()


async def test_bytes_of_all_together_have_a_cap_and_come_back_with_a_broken_connection(tmp_path):
    async with (
        served(tmp_path, spec()) as server,
        device_of(server, 0) as one,
        device_of(server, 1) as two,
    ):
        with_caps(server, body_bytes_max=8_000)
        _, first = await connect(server)
        first.write(head("POST", "/v1/adverts", await one.token(), Content_Length=5_000))
        await until(lambda: server.service.intake._held)
        reader, second = await connect(server)
        second.write(head("POST", "/v1/adverts", await two.token(), Content_Length=5_000))
        status, reason, headers = await answered(reader)
        assert (status, reason, headers["retry-after"]) == (503, "bodies-full", "1")
        second.close()
        first.close()
        await until(lambda: not server.service.intake._held)
        await two.report_in()


async def test_a_body_of_unknown_size_counts_as_much_as_it_may_come_to(tmp_path):
    async with served(tmp_path, spec()) as server, device_of(server, 0) as device:
        with_caps(server, device_body_bytes_max=8_000)  # less than the largest advert
        reader, writer = await connect(server)
        token = await device.token()
        writer.write(head("POST", "/v1/adverts", token, Transfer_Encoding="chunked"))
        assert (await answered(reader))[:2] == (429, "bodies-open")
        writer.close()


async def test_a_cohort_is_done_beside_a_member_that_fills_its_own_caps(tmp_path):
    async with served(tmp_path, spec(), device_requests_max=4) as server:
        fleet = devices(server, 4)
        greedy, writers = fleet[3], []

        async def fill(name):
            if name == "deals" and not writers:
                path, token = f"{greedy.session}/messages", await greedy.token()
                for _ in range(8):
                    _, writer = await connect(server)
                    writer.write(head("POST", path, token, Content_Length=20_000) + bytes(10_000))
                    writers.append(writer)
                await until(lambda: refusals(server).get("requests-open", 0) >= 4)
                greedy.gone = True
                raise asyncio.CancelledError

        greedy.hold = fill

        async def until_it_fills():
            try:
                await Device.run(greedy)
            except asyncio.CancelledError:
                return None

        greedy.run = until_it_fills
        assert finished(await run(fleet)) == 3
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 0, 0]
        for writer in writers:
            writer.close()


# -- connections --------------------------------------------------------------------------------

LONG = {"connection_first_byte_s": 60.0, "connection_header_s": 60.0, "connection_idle_s": 60.0}


def set_deadlines(server, **seconds: float) -> None:
    """Tiny ones, from the next connection on: the test's own set-up had time."""
    for name, value in seconds.items():
        setattr(server.connections, name, value)


async def test_a_connection_that_never_sends_is_closed(tmp_path):
    async with served(tmp_path, spec(), **LONG) as server:
        set_deadlines(server, first_byte_s=0.2)
        reader, writer = await connect(server)
        assert await ended(reader) == b""
        assert refusals(server)["first-byte-late"] == 1
        writer.close()


async def drip(reader, writer) -> None:
    """One byte at a time, until the service closes."""
    end = asyncio.create_task(ended(reader))
    async with asyncio.timeout(QUIET_S):
        while not end.done():
            writer.write(b"a")
            await asyncio.wait([end], timeout=0.02)
    writer.close()


async def test_a_head_that_trickles_is_closed(tmp_path):
    async with served(tmp_path, spec(), **LONG) as server:
        set_deadlines(server, header_s=0.3)
        reader, writer = await connect(server)
        writer.write(b"GET /v1/server HTTP/1.1\r\nHost: x\r\nX-a: ")
        await drip(reader, writer)
        assert refusals(server)["header-late"] == 1


async def test_a_second_head_that_trickles_is_closed_too(tmp_path):
    async with served(tmp_path, spec(), **LONG) as server:
        set_deadlines(server, header_s=0.3)
        reader, writer = await connect(server)
        first = head("GET", "/v1/server")  # in two parts
        writer.write(first[:10])
        await until(lambda: any(c._head_bytes for c in server.runner.server.connections))
        writer.write(first[10:])
        assert (await answered(reader))[0] == 200
        writer.write(b"GET /v1/server HTTP/1.1\r\nX-a: ")
        await drip(reader, writer)
        assert refusals(server)["header-late"] == 1


async def test_a_head_that_never_ends_is_cut_off(tmp_path):
    """Each field is small enough; a hundred of them would be a megabyte for each connection."""
    async with served(tmp_path, spec(), **LONG) as server:
        reader, writer = await connect(server)
        writer.write(b"GET /v1/server HTTP/1.1\r\n")
        sent, end = 0, asyncio.create_task(ended(reader))
        async with asyncio.timeout(QUIET_S):
            while not end.done() and sent < 100:
                writer.write(b"X-%d: %s\r\n" % (sent, b"a" * 3_000))
                sent += 1
                await asyncio.wait([end], timeout=0.05)
        assert end.done()
        assert sent < 20
        assert refusals(server)["header-too-large"] == 1
        writer.close()


async def test_requests_do_not_pile_up_in_one_connection(tmp_path):
    async with served(tmp_path, spec(), **LONG) as server:
        reader, writer = await connect(server)
        writer.write(head("GET", "/v1/server") * 3)
        for _ in range(3):
            assert (await answered(reader))[0] == 200
        writer.write(head("GET", "/v1/server") * 20)
        await ended(reader)
        assert refusals(server)["pipelined"] == 1
        writer.close()


async def test_a_connection_that_is_idle_between_requests_is_closed(tmp_path):
    async with served(tmp_path, spec(), **LONG) as server:
        set_deadlines(server, idle_s=0.3)
        reader, writer = await connect(server)
        writer.write(head("GET", "/v1/server"))
        assert (await answered(reader))[0] == 200
        assert await ended(reader) == b""
        writer.close()


async def test_a_long_poll_outlives_every_deadline_of_its_connection(tmp_path):
    async with served(tmp_path, spec(), **LONG) as server, device_of(server, 0) as device:
        set_deadlines(server, first_byte_s=0.2, header_s=0.2, idle_s=0.2)
        path = f"/v1/tasks/{TASK}/offer?after_version=0&wait_s=1.2"
        started = time.monotonic()
        assert (await device.request("GET", path))[0] == 200
        assert time.monotonic() - started > 1.0


async def test_an_answer_that_nobody_takes_ends_with_its_connection(tmp_path):
    large = spec(segments=(SegmentSpec(name="count", length=4_000_000, clip=100.0),))
    async with served(tmp_path, large) as server, device_of(server, 0) as device:
        offer = await device.json("GET", f"/v1/tasks/{TASK}/offer", http_api.Offer)
        token = await device.token()
        set_deadlines(server, answer_s=0.3)
        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            idle.connect(("127.0.0.1", port_of(server)))
            idle.sendall(head("GET", f"/v1/models/{offer.model.digest.hex()}", token))
            await until(lambda: refusals(server).get("answer-not-taken"))
            await until(lambda: open_at(server) <= 1)


@pytest.mark.parametrize("closes", ["caller", "service"])
async def test_what_nobody_takes_does_not_keep_a_closed_connection(tmp_path, closes):
    waits = {"connection_idle_s": 0.3} if closes == "service" else {}
    async with served(tmp_path, **waits) as server:
        set_deadlines(server, answer_s=0.3)
        reader, writer = await connect(server)
        await until(lambda: server.runner.server.connections)
        (connection,) = server.runner.server.connections
        if closes == "service":
            writer.write(head("GET", "/v1/server"))
            assert (await answered(reader))[0] == 200
        unsent, counted = connection.transport, server.connections.by_address
        unsent.set_write_buffer_limits(high=1 << 30)  # as of an answer in one piece
        unsent.write(b"x" * (16 << 20))
        if closes == "caller":
            writer.write(head("GET", "/v1/server", Connection="close"))
        await until(unsent.is_closing)
        assert unsent.get_write_buffer_size() > 0
        await until(lambda: not counted)
        writer.close()


async def test_connections_in_all_are_capped_and_more_are_told_so(tmp_path):
    async with served(tmp_path, spec(), connections_max=8, **LONG) as server:
        held = [await connect(server, f"127.0.0.{n}") for n in (1, 1, 1, 1, 2, 2, 2, 2)]
        await asyncio.sleep(0)
        reader, writer = await connect(server, "127.0.0.3")
        status, reason, headers = await answered(reader)
        assert (status, reason, headers["retry-after"]) == (503, "connections-full", "5")
        assert await ended(reader) == b""
        writer.close()
        held.pop()[1].close()
        await until(lambda: open_at(server) <= 7)
        reader, writer = await connect(server, "127.0.0.3")
        writer.write(head("GET", "/v1/server"))
        assert (await answered(reader))[0] == 200
        for _, other in [*held, (reader, writer)]:
            other.close()


async def test_one_address_cannot_take_the_connections_of_others(tmp_path):
    async with served(
        tmp_path, spec(), connections_max=100, connections_per_address=5, **LONG
    ) as server:
        held = [await connect(server) for _ in range(5)]
        reader, writer = await connect(server)
        status, reason, headers = await answered(reader)
        assert (status, reason, headers["retry-after"]) == (429, "connections-of-address", "5")
        writer.close()
        reader, writer = await connect(server, "127.0.0.2")
        writer.write(head("GET", "/v1/server"))
        assert (await answered(reader))[0] == 200
        for _, other in [*held, (reader, writer)]:
            other.close()


async def test_long_polls_count_as_connections(tmp_path):
    async with (
        served(tmp_path, spec(), connections_max=100, connections_per_address=3, **LONG) as server,
        device_of(server, 0) as device,
    ):
        poll = head(
            "GET", f"/v1/tasks/{TASK}/offer?after_version=0&wait_s=20", await device.token()
        )
        held = [await connect(server) for _ in range(3)]
        for _, writer in held:
            writer.write(poll)
        reader, writer = await connect(server)
        assert (await answered(reader))[:2] == (429, "connections-of-address")
        for _, other in [*held, (reader, writer)]:
            other.close()


async def test_the_admin_port_answers_when_the_public_one_is_full(tmp_path):
    async with served(tmp_path, spec(), connections_max=4, **LONG) as server:
        held = [await connect(server, f"127.0.0.{n}") for n in (1, 1, 2, 2)]
        runner = web.AppRunner(build_admin_app(server.service))
        await runner.setup()
        site = connections.Site(runner, "127.0.0.1", 0, connections.admin(server.settings))
        await site.start()
        port = runner.addresses[0][1]
        async with aiohttp.ClientSession() as http:
            for path in ("/healthz", "/readyz", "/metrics", "/"):
                async with http.get(f"http://127.0.0.1:{port}{path}") as response:
                    assert response.status == 200
        await runner.cleanup()
        for _, writer in held:
            writer.close()


FILES = 200


def test_a_service_with_few_file_descriptors_keeps_enough_of_them(tmp_path: Path):
    """As many connections as there are descriptors, from two addresses; all the while the admin
    port answers, and afterwards the public one does."""
    import resource

    environment = {
        **os.environ,
        "SECAGG_DATA_DIR": str(tmp_path),
        "SECAGG_PORT": "0",
        "SECAGG_ADMIN_PORT": "0",
    }
    service = subprocess.Popen(
        [sys.executable, "-m", "aggregator.main"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES // 2, FILES)),
    )
    try:
        assert service.stdout is not None
        listening = json.loads(service.stdout.readline())["listening"]
        held = []
        for number in range(FILES):
            connection = socket.socket()
            connection.bind((f"127.0.0.{1 + number % 4}", 0))
            connection.settimeout(QUIET_S)
            connection.connect(("127.0.0.1", listening["port"]))
            held.append(connection)
            if number % 20 == 0:
                assert b" 200 " in get(listening["admin_port"], "/healthz")
        end = time.monotonic() + QUIET_S
        refused = 0.0
        while refused <= 100:  # the service takes one connection after the other
            assert time.monotonic() < end
            metrics = get(listening["admin_port"], "/metrics").decode()
            found = re.findall(r'reason="connections-full"} (\S+)', metrics)
            refused = float(found[0]) if found else 0.0
        assert b" 200 " in get(listening["admin_port"], "/readyz")  # the database opens its files
        for connection in held:
            connection.close()
        end = time.monotonic() + QUIET_S
        while b" 200 " not in get(listening["port"], "/v1/server"):
            assert time.monotonic() < end
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(QUIET_S)
        service.stdout.close()


def test_the_cap_of_connections_follows_the_open_files(monkeypatch):
    from aggregator.metrics import Metrics

    for files, most, per_address in (
        (None, 8_192, 1_024),
        (1_048_576, 8_192, 1_024),
        (1_024, 384, 192),
        (256, 80, 40),
    ):
        monkeypatch.setattr(connections, "raise_file_limit", lambda files=files: files)
        made = connections.public(Settings(), Metrics())
        assert (made.max, made.per_address) == (most, per_address)
        assert files is None or files - 2 * made.max >= min(512, max(96, files // 4))
    behind = Settings(behind_proxy=True, connections_max=60, connections_per_address=60)
    assert connections.public(behind, Metrics()).per_address == 60, "a proxy's address is all's"


def test_what_counts_as_one_address():
    one = connections._network
    assert one(("192.0.2.7", 1)) == one(("::ffff:192.0.2.7", 1, 0, 0)) != one(("192.0.2.8", 1))
    assert one(("2001:db8:1:2::1", 1, 0, 0)) == one(("2001:db8:1:2:ffff::9", 1, 0, 0))
    assert one(("2001:db8:1:2::1", 1, 0, 0)) != one(("2001:db8:1:3::1", 1, 0, 0))
    assert one(("fe80::1%eth0", 1, 0, 2)) == one(("fe80::2%eth0", 1, 0, 2))
    assert one(None) == one("") == "unknown"
