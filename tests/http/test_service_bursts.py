"""Many connections at once and heads that are none: the service answers, its log stays short."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aggregator import logs
from tests.kits.service import QUIET_S, served, spec
from tests.kits.walls import answered, connect, ended, get, refusals, until

FILES = 192


def test_many_connections_at_once_leave_descriptors_for_the_admin_port(tmp_path: Path):
    import resource

    environment = {**os.environ, "SECAGG_DATA_DIR": str(tmp_path / "data")}
    environment |= {"SECAGG_PORT": "0", "SECAGG_ADMIN_PORT": "0"}
    log = tmp_path / "log"
    with log.open("wb") as errors:
        service = subprocess.Popen(
            [sys.executable, "-m", "aggregator.main"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
        )
    held = []
    try:
        assert service.stdout is not None
        listening = json.loads(service.stdout.readline())["listening"]
        for _ in range(2 * FILES):
            connection = socket.socket()
            held.append(connection)
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", listening["port"]))
        assert b" 200 " in get(listening["admin_port"], "/metrics")
        assert b" 200 " in get(listening["admin_port"], "/readyz")
    finally:
        for connection in held:
            connection.close()
        service.send_signal(signal.SIGTERM)
        service.wait(QUIET_S)
        service.stdout.close()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first, *rest = [line["event"] for line in lines]
    assert first == "connections-capped"
    # Of hundreds of refused connections a few lines, with their address, and a count.
    assert rest.count("refused") == rest.count("lines-left-out") + 4 == 5
    assert {line["remote"] for line in lines if line["event"] == "refused"} == {"127.0.0.1"}
    (left_out,) = [line for line in lines if line["event"] == "lines-left-out"]
    assert left_out["of_reason"].startswith("connections-")


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"GET /v1/server HTTP/1.1\r\nAuthorization: Bearer %s\r\n\r\n", 431, "header-too-large"),
        (b"GET /v1/%s HTTP/1.1\r\n\r\n", 431, "header-too-large"),
        (b"GET /v1/server HTTP/1.1\r\nA\0: Bearer %.40s\r\n\r\n", 400, "head-malformed"),
        (b"%.40s /v1/server\r\n\r\n", 400, "head-malformed"),
    ],
    ids=["line-of-a-field", "line-of-a-request", "field", "method"],
)
async def test_a_head_that_is_none_is_told_and_logged_without_its_bytes(
    tmp_path, capfd, sent, status, reason
):
    logs.configure()
    async with served(tmp_path, spec()) as server:
        capfd.readouterr()
        reader, writer = await connect(server)
        writer.write(sent % (b"secret" * 1_000))
        found, told, _ = await answered(reader)
        assert (found, told) == (status, reason)
        assert b"secret" not in await ended(reader)
        writer.close()
        await until(lambda: refusals(server).get(reason) == 1)
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        assert [(line["event"], line["reason"]) for line in lines] == [("refused", reason)]
        assert "secret" not in repr(lines)


def test_what_libraries_log_is_one_line_of_json_each(capfd):
    import logging

    logs.configure()
    try:
        raise OSError(24, "Too many open files")
    except OSError:
        logging.getLogger("asyncio").exception("socket.accept() out of\nsystem resource")
    (line,) = capfd.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["component"], told["level"]) == ("asyncio", "error")
    assert "Too many open files" in told["exception"]
