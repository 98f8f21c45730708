"""TLS of the service itself: what it serves and refuses, and how it takes a new certificate."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

from aggregator import logs
from aggregator.http import connections
from aggregator.http.app import build_admin_app
from aggregator.main import warn_of_open_host
from aggregator.settings.options import Settings
from aggregator.tls import Tls
from client_sdk.errors import Unreached
from client_sdk.network.connections import Network, NetworkError
from tests.kits.boxes import Authority
from tests.kits.log_lines import lines, of
from tests.kits.service import Served, served
from tests.kits.starting import refused
from tests.kits.walls import until

HERE = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def paths(pair: tuple[Path, Path]) -> dict[str, Any]:
    return {"tls_certificate": pair[0], "tls_key": pair[1]}


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.ca_file))


class Caller:
    """One connection, and the number of the certificate that it was shown."""

    async def to(self, url: str, context: ssl.SSLContext) -> Caller:
        port = int(url.rpartition(":")[2])
        self.reader, self.writer = await asyncio.open_connection(HERE, port, ssl=context)
        self.shown = self.writer.get_extra_info("peercert")["serialNumber"]
        return self

    async def status(self) -> int:
        self.writer.write(b"GET /v1/server HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
        await self.reader.readexactly(length)
        return int(head.split()[1])


async def anew(authority: Authority, url: str) -> tuple[int, str]:
    """What a new connection is answered with, and the certificate that it is shown."""
    caller = await Caller().to(url, trusting(authority))
    try:
        return await caller.status(), caller.shown
    finally:
        caller.writer.transport.abort()


@asynccontextmanager
async def admin_port(server: Served) -> AsyncIterator[str]:
    """Its admin port, in this loop."""
    runner = web.AppRunner(build_admin_app(server.service))
    await runner.setup()
    tls = server.service.tls.admin
    allowed = connections.admin(server.settings)
    await connections.Site(runner, HERE, 0, allowed, tls=tls).start()
    try:
        yield f"{'http' if tls is None else 'https'}://{HERE}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_renewed_pair_serves_new_connections_and_a_broken_one_is_told(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "service.pem"
    settings = paths(authority.pair(file, HERE, days=3))
    async with served(tmp_path / "data", **settings) as server, admin_port(server) as admin:
        logs.configure()
        tls = server.service.tls
        first = await Caller().to(server.url, trusting(authority))
        assert await first.status() == 200
        authority.pair(file, HERE, days=5)
        tls.look()
        second = await anew(authority, server.url)
        assert second[0] == 200
        assert second[1] != first.shown, "the new certificate"
        assert await first.status() == 200, "the open connection goes on"
        first.writer.transport.abort()
        async with aiohttp.ClientSession() as http:
            assert tls.left_s > 4 * 86_400

            async with http.get(f"{admin}/readyz") as answer:
                assert await answer.json() == {"ready": True}
            whole = file.read_bytes()
            for broken in ("mismatch", "malformed"):
                if broken == "mismatch":
                    authority.pair(tmp_path / "other.pem", HERE)
                    file.write_bytes((tmp_path / "other.pem").read_bytes())
                else:
                    file.write_text("half a file")
                tls.look()
                tls.look()
                assert await anew(authority, server.url) == second, "the old pair serves"
                async with http.get(f"{admin}/readyz") as answer:
                    told = await answer.json()
                assert (answer.status, told["ready"]) == (200, True)
                assert broken in told["warnings"][0]["reason"]
                async with http.get(f"{admin}/metrics") as answer:
                    assert "secagg_tls_renewal_failed 1.0" in await answer.text()
                server.service.measures._read_at = 0.0
            file.write_bytes(whole)
            tls.look()
            assert tls.failed is None
            async with http.get(f"{admin}/readyz") as answer:
                assert await answer.json() == {"ready": True}
        said = of("tls-renewal-failed", lines(capsys))
        assert [line["reason"] for line in said] == ["tls-mismatch", "tls-file-malformed"]

        server.ahead_s = 6 * 86_400.0
        async with aiohttp.ClientSession() as http, http.get(f"{admin}/readyz") as answer:
            assert (answer.status, (await answer.json())["reason"]) == (503, "tls-expired")


@pytest.mark.parametrize(
    "reason",
    [
        *("tls-key-permissions", "tls-key-encrypted", "tls-mismatch", "tls-expired"),
        *("tls-not-yet-valid", "tls-file-unreadable", "tls-file-malformed", "tls-unusable"),
    ],
)
async def test_what_cannot_serve_is_refused_at_the_start(
    tmp_path: Path, authority: Authority, reason: str
) -> None:
    file, changed = tmp_path / "service.pem", {}
    match reason:
        case "tls-key-encrypted":
            changed["password"] = b"of nobody"
        case "tls-expired":
            changed["days"] = -1
        case "tls-unusable":
            changed["key"] = rsa.generate_private_key(65_537, 1_024)  # noqa: S505  it is refused
    certificate, key = authority.pair(file, HERE, **changed)
    match reason:
        case "tls-key-permissions":
            key.chmod(0o644)
        case "tls-mismatch":
            _, key = authority.pair(tmp_path / "other.pem", HERE)
        case "tls-file-unreadable":
            key.unlink()
        case "tls-file-malformed":
            certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    settings = {"data_dir": tmp_path / "data", **paths((certificate, key))}
    if reason == "tls-not-yet-valid":
        from aggregator.service import Service
        from secagg.errors import ConfigurationError

        with pytest.raises(ConfigurationError) as caught:
            Service(Settings.load(**settings), lambda: 0.0)
        error = caught.value
    else:
        error = await refused(settings)
    assert error.reason == reason
    assert str(certificate) in str(error) or str(key) in str(error)


async def test_callers_show_certificates_where_they_are_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    settings = paths(authority.pair(tmp_path / "service.pem", HERE))
    certificate, key = authority.pair(tmp_path / "caller.pem", "caller")
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    strange, strange_key = Authority(strangers, "stranger").pair(strangers / "caller.pem", "caller")
    settings["tls_client_ca"] = authority.ca_file
    settings["admin_client_ca"] = authority.ca_file
    async with served(tmp_path / "data", **settings) as server, admin_port(server) as admin:

        async def asked(url: str, *shown: Path) -> int:
            certificate, key = shown or (None, None)
            async with (
                Network(
                    "test",
                    ca_file=authority.ca_file,
                    client_certificate=certificate,
                    client_key=key,
                    environment={},
                ) as network,
                network.ask("GET", url) as answer,
            ):
                return answer.status

        public = f"{server.url}/v1/server"
        assert await asked(public, certificate, key) == 200
        with pytest.raises(Unreached) as caught:
            await asked(public)
        assert caught.value.reason == "tls-client-certificate"
        with pytest.raises(Unreached):
            await asked(public, strange, strange_key)
        key.chmod(0o644)
        with pytest.raises(NetworkError, match="client-key-permissions"):
            await asked(public, certificate, key)
        key.chmod(0o600)
        with pytest.raises(NetworkError, match="client-certificate"):
            await asked(public, certificate, strange_key)

        for page in ("/healthz", "/readyz"):
            assert await asked(admin + page) == 200
        for page in ("/", "/metrics", "/nothing"):
            assert await asked(admin + page) == 403
        assert await asked(f"{admin}/metrics", certificate, key) == 200
        with pytest.raises(Unreached):
            await asked(f"{admin}/healthz", strange, strange_key)


@pytest.mark.parametrize("minimum", ["1.2", "1.3"])
async def test_the_version_of_tls_is_at_least_the_one_that_is_set(
    tmp_path: Path, authority: Authority, minimum: str
) -> None:
    settings = paths(authority.pair(tmp_path / "service.pem", HERE))
    async with served(tmp_path / "data", tls_minimum=minimum, **settings) as server:
        port = int(server.url.rpartition(":")[2])
        context = trusting(authority)
        context.minimum_version = ssl.TLSVersion.TLSv1_2

        async def version() -> str:
            _, writer = await asyncio.open_connection(HERE, port, ssl=context)
            writer.transport.abort()
            return str(writer.get_extra_info("ssl_object").version())

        assert await version() == "TLSv1.3"
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        if minimum == "1.2":
            assert await version() == "TLSv1.2"
        else:
            with pytest.raises(ssl.SSLError):
                await version()


async def test_connections_that_never_shake_hands_count_and_end(
    tmp_path: Path, authority: Authority
) -> None:
    settings = paths(authority.pair(tmp_path / "service.pem", HERE))
    settings |= {"connections_max": 8, "connection_header_s": 0.3}
    async with served(tmp_path / "data", **settings) as server:
        port = int(server.url.rpartition(":")[2])
        counted = server.connections.by_address
        idle = [await asyncio.open_connection(HERE, port) for _ in range(6)]
        await until(lambda: counted.total() == 4)  # half of all, for one address
        with pytest.raises(ConnectionError):
            await anew(authority, server.url)
        await until(lambda: not counted)
        for reader, writer in idle:
            assert await reader.read() == b""
            writer.close()
        metrics = server.service.core.metrics.render().decode()
        assert 'secagg_refusals_total{reason="tls-handshake"} 4.0' in metrics


async def test_a_handshake_under_way_ends_with_its_port(
    tmp_path: Path, authority: Authority
) -> None:
    settings = paths(authority.pair(tmp_path / "service.pem", HERE))
    async with served(tmp_path / "data", **settings) as server:
        counted = server.connections.by_address
        reader, writer = await asyncio.open_connection(HERE, int(server.url.rpartition(":")[2]))
        await until(lambda: counted.total() == 1)
        (port,) = server.runner.sites
        await port.stop()
        assert not counted
        assert await reader.read() == b""
        writer.close()


async def test_a_file_that_nobody_foresaw_is_told_and_ends_neither_look_nor_stop(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = tmp_path / "callers.pem"
    callers.write_text("# Főtanúsítvány\n" + authority.ca_file.read_text())
    pair = authority.pair(tmp_path / "service.pem", HERE)
    settings = Settings.load(data_dir=tmp_path, tls_client_ca=callers, **paths(pair))
    tls = Tls(settings, time.time)
    monkeypatch.setattr("aggregator.tls.LOOK_S", 0.0)
    with monkeypatch.context() as strange:
        strange.setattr(x509, "load_pem_x509_certificates", Mock(side_effect=UnsupportedAlgorithm))
        callers.write_text(authority.ca_file.read_text())
        tls.start()
        await until(lambda: tls.failed is not None)
        assert tls.failed.reason == "tls-unusable"
    await until(lambda: tls.failed is None)
    monkeypatch.setattr(tls, "look", Mock(side_effect=MemoryError))
    await until(lambda: tls._looking.done())
    await tls.close()


def test_a_service_with_tls_warns_of_no_plain_port(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    settings = {"data_dir": tmp_path / "data", "host": "0.0.0.0"}  # noqa: S104  nobody listens
    warn_of_open_host(Settings.load(**settings))
    warn_of_open_host(
        Settings.load(**settings, **paths(authority.pair(tmp_path / "service.pem", HERE)))
    )
    assert len(of("http-without-tls", lines(capsys))) == 1
