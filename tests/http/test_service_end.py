"""How a process of the service ends, and what its admin port says of one that is in trouble."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from aggregator import logs
from aggregator.main import event_loop, warn_of_open_host
from aggregator.main import wait_s as waited
from aggregator.settings.options import Settings
from tests.kits.log_lines import lines
from tests.kits.service import QUIET_S
from tests.kits.walls import get


@contextmanager
def process(
    folder: Path, log_to: int | None = None, **variables: str
) -> Iterator[tuple[subprocess.Popen[bytes], Any, Path]]:
    """A service of its own: the process, what it listens at, and its log, a file unless
    ``log_to`` names a descriptor."""
    log = folder / "log"
    environment = {**os.environ, "SECAGG_DATA_DIR": str(folder / "data"), **variables}
    environment |= {"SECAGG_PORT": "0", "SECAGG_ADMIN_PORT": "0"}
    with log.open("wb") as errors:
        started = subprocess.Popen(
            [sys.executable, "-m", "aggregator.main"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors if log_to is None else log_to,
        )
    assert started.stdout is not None
    try:
        yield started, json.loads(started.stdout.readline())["listening"], log
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def test_a_service_that_is_told_to_stop_is_not_ready_first_and_a_second_time_ends_at_once(
    tmp_path: Path,
) -> None:
    with process(tmp_path, SECAGG_SHUTDOWN_WAIT_S="60") as (service, at, log):
        assert b" 200 " in get(at["admin_port"], "/readyz")
        service.send_signal(signal.SIGTERM)
        end = time.monotonic() + QUIET_S
        while b'"draining"' not in (answer := get(at["admin_port"], "/readyz")):
            assert time.monotonic() < end
        assert b" 503 " in answer
        assert b" 200 " in get(at["admin_port"], "/healthz")
        assert b" 200 " in get(at["port"], "/v1/server")  # a balancer has not noticed yet
        service.send_signal(signal.SIGTERM)
        assert service.wait(QUIET_S) == 128 + signal.SIGTERM
        told = [json.loads(line) for line in log.read_text().splitlines()]
        assert [line["event"] for line in told] == ["started", "stopping", "stopped-at-once"]
        assert {line["replica"] for line in told} == {
            (tmp_path / "data" / "replica.id").read_text().strip()
        }
        began = told[0]
        assert (began["url"], began["admin_url"]) == (at["url"], at["admin_url"])
        assert began["database"] == f"sqlite:///{tmp_path}/data/secagg.db"
        assert began["operator_shows"] == str(tmp_path / "data" / "operator.token")
        assert (tmp_path / "data" / "operator.token").read_text().strip() not in log.read_text()


def test_whoever_stops_it_by_hand_waits_for_no_balancer(tmp_path: Path) -> None:
    with process(tmp_path, SECAGG_SHUTDOWN_WAIT_S="60") as (service, _, log):
        service.send_signal(signal.SIGINT)
        assert service.wait(QUIET_S) == 0
        assert json.loads(log.read_text().splitlines()[-1])["event"] == "stopped"


def test_a_log_whose_reader_died_changes_nothing_of_what_the_service_does(tmp_path: Path) -> None:
    """A connection that sends nothing is ended, and told of, in a callback of the event loop."""
    reader, log = os.pipe()
    variables = {"SECAGG_CONNECTION_FIRST_BYTE_S": "0.05"}
    with process(tmp_path, log, **variables) as (service, at, _):
        os.close(log)
        os.close(reader)
        with socket.create_connection(("127.0.0.1", at["port"]), timeout=QUIET_S) as idle:
            assert idle.recv(1) == b""
        assert b" 200 " in get(at["admin_port"], "/healthz")
        shown = get(at["admin_port"], "/metrics").decode()
        assert 'secagg_refusals_total{reason="first-byte-late"} 1.0' in shown
        (lost,) = re.findall(r"^secagg_log_failures_total (\S+)$", shown, re.MULTILINE)
        assert float(lost) >= 1  # "started" may be lost too
        service.send_signal(signal.SIGTERM)
        assert service.wait(QUIET_S) == 0


@pytest.mark.parametrize(
    ("settings", "seconds", "warned"),
    [
        ({}, 0.0, False),
        ({"host": "localhost"}, 0.0, False),
        ({"host": "::1"}, 0.0, False),
        ({"host": "0.0.0.0"}, 5.0, True),  # noqa: S104
        ({"host": "::"}, 5.0, True),
        ({"host": "secagg.example"}, 5.0, True),
        ({"host": "0.0.0.0", "behind_proxy": True}, 5.0, False),  # noqa: S104
        ({"host": "0.0.0.0", "shutdown_wait_s": 0.5}, 0.5, True),  # noqa: S104
    ],
)
def test_an_open_host_without_tls_is_warned_of_and_waits_for_balancers(
    settings: dict[str, Any], seconds: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    made = Settings(**settings)
    assert waited(made) == seconds
    warn_of_open_host(made)
    told = lines(capsys)
    assert [line["event"] for line in told] == ["http-without-tls"] * warned
    assert all("behind_proxy" in line["remedy"] for line in told)


SLOW_START = """
    import asyncio, sys
    from aggregator import main
    from aggregator.service import Service
    from aggregator.settings.options import Settings

    async def start(self):
        await asyncio.sleep(60)

    Service.start = start
    main.serve(Settings(data_dir=sys.argv[1], port=0, admin_port=int(sys.argv[2])))
"""


def test_a_service_whose_start_is_long_is_alive_and_not_ready(tmp_path: Path) -> None:
    """A migration, or large cohorts: who restarts it for want of an answer begins it anew."""
    port = unused_port()
    arguments = [sys.executable, "-c", textwrap.dedent(SLOW_START), str(tmp_path), str(port)]
    starting = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + QUIET_S
        while True:
            with suppress(ConnectionError):
                assert b" 200 " in get(port, "/healthz")
                break
            assert time.monotonic() < end
            time.sleep(0.05)
        told = get(port, "/readyz")
        assert b" 503 " in told
        assert b'"starting"' in told
    finally:
        starting.kill()
        starting.wait()


TROUBLED = """
    import asyncio, json, os, sys, time
    import aggregator.http.admin_port as admin
    from aggregator import logs
    from aggregator.http.app import SERVICE, build_app
    from aggregator.settings.options import Settings

    logs.configure()

    async def main():
        settings = Settings(data_dir=sys.argv[1], admin_port=0)
        port = admin.AdminPort(build_app(settings)[SERVICE], settings)
        _, number = await port.start()
        held = []
        try:
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
        print(number, flush=True)
        time.sleep(60)  # the service's event loop stands still

    admin.STILL_S = 1.5
    asyncio.run(main())
"""


def test_liveness_is_answered_without_a_descriptor_and_while_the_loop_is_busy_but_not_for_ever(
    tmp_path: Path,
) -> None:
    import resource

    troubled = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TROUBLED), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
    )
    assert troubled.stdout is not None
    assert troubled.stderr is not None
    try:
        port = int(troubled.stdout.readline())
        assert b" 200 " in get(port, "/healthz")
        end = time.monotonic() + QUIET_S
        while b'"still"' not in (answer := get(port, "/healthz")):
            assert time.monotonic() < end
            time.sleep(0.1)
        assert b" 503 " in answer
    finally:
        troubled.kill()
        _, errors = troubled.communicate()
    told = [json.loads(line) for line in errors.splitlines()]
    assert [line["event"] for line in told] == ["descriptors-exhausted"]


@pytest.mark.parametrize(("there", "secure"), [(True, False), (False, False), (True, True)])
def test_the_service_runs_with_uvloop_or_without(
    monkeypatch: pytest.MonkeyPatch, there: bool, secure: bool
) -> None:
    """A connection of uvloop cannot be upgraded to TLS once it is made, as the service does."""
    if not there:
        monkeypatch.setitem(sys.modules, "uvloop", None)
    pair = {"tls_certificate": Path("c.pem"), "tls_key": Path("k.pem")} if secure else {}
    loop = event_loop(Settings(**pair))
    try:
        assert type(loop).__module__.startswith("uvloop") == (there and not secure)
        assert loop.run_until_complete(asyncio.sleep(0, "done")) == "done"
    finally:
        loop.close()
