"""What stands between a device and the aggregator, on loopback: proxies, pages, authorities."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp.test_utils
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

LOGIN_PAGE = b"<!DOCTYPE html><html><title>Welcome</title>Please log in" + b" " * 100_000
PASSWORD = "s3cr@t/#pass"
ENCODED = "s3cr%40t%2F%23pass"
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Proxy:
    """An HTTP proxy: CONNECT and absolute forms, to the server of ``target`` whatever is named.

    ``refuse``: status and head fields of its answer to everything; None: it forwards. ``asked``:
    first lines and the credentials that came with them.
    """

    refuse: tuple[int, str] | None = None
    password: str | None = None
    asked: list[str] = field(default_factory=list)
    port: int = 0
    target: tuple[str, int] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *fields = head.rstrip("\r\n").split("\r\n")
        self.asked.append(first)
        if self.password is not None and self._given(fields) != f"user:{self.password}":
            await self._answer(writer, 407, "Proxy-Authenticate: Basic")
            return
        if self.refuse is not None:
            await self._answer(writer, *self.refuse)
            return
        method, address, version = first.split(" ")
        if method == "CONNECT":
            host, _, port = address.rpartition(":")
            rest = b""
        else:
            host, _, path = address.removeprefix("http://").partition("/")
            host, _, port = host.partition(":")
            kept = [f for f in fields if not f.lower().startswith("proxy-")]
            rest = "\r\n".join([f"{method} /{path} {version}", *kept, "", ""]).encode("latin-1")
        up_reader, up_writer = await asyncio.open_connection(
            *(self.target or (host, int(port or 80)))
        )
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        up_writer.write(rest)
        await asyncio.gather(_pipe(reader, up_writer), _pipe(up_reader, writer))

    def _given(self, fields: list[str]) -> str:
        for each in fields:
            name, _, value = each.partition(": ")
            if name.lower() == "proxy-authorization":
                return base64.b64decode(value.removeprefix("Basic ")).decode()
        return ""

    async def _answer(self, writer: asyncio.StreamWriter, status: int, head: str) -> None:
        lines = [f"HTTP/1.1 {status} No", "Content-Type: text/html", "Connection: close"]
        lines += [*filter(None, [head]), f"Content-Length: {len(LOGIN_PAGE)}", "", ""]
        writer.write("\r\n".join(lines).encode() + LOGIN_PAGE)
        await writer.drain()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def proxy(**parts: object) -> AsyncIterator[Proxy]:
    made = Proxy(**parts)  # type: ignore[arg-type]
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


class Authority:
    """A certificate authority of this test alone; its own certificate is ``ca_file``."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.certificate = self._sign(
            self._name,
            self._key,
            lambda builder: builder.add_extension(x509.BasicConstraints(True, 0), critical=True),
        )
        self._folder = folder
        self.ca_file = folder / f"{name}.pem"
        self.ca_file.write_bytes(_pem(self.certificate))

    def pair(
        self,
        file: Path,
        *names: str,
        days: int = 1,
        key: Key | None = None,
        password: bytes | None = None,
    ) -> tuple[Path, Path]:
        """Write a certificate for these names or addresses to ``file``, and its key beside it."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        alternatives = x509.SubjectAlternativeName([_general(name) for name in names])
        certificate = self._sign(
            _named(file.stem),
            key,
            lambda builder: builder.add_extension(alternatives, critical=False),
            days,
        )
        file.write_bytes(_pem(certificate))
        secret = file.with_suffix(".key")
        secret.unlink(missing_ok=True)
        secret.touch(0o600)
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password)
                if password
                else serialization.NoEncryption(),
            )
        )
        return file, secret

    def server(self, *names: str, days: int = 1) -> ssl.SSLContext:
        """Of a server with a certificate for these names or addresses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.pair(self._folder / "server.pem", *names, days=days))
        return context

    def _sign(
        self,
        subject: x509.Name,
        key: Key,
        extend: Callable[[x509.CertificateBuilder], x509.CertificateBuilder],
        days: int = 1,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        )
        return extend(builder).sign(self._key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@asynccontextmanager
async def serving(
    answer: Answer, context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server of one answer: its URL, and what it was asked."""
    asked: list[web.Request] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return await answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = aiohttp.test_utils.TestServer(app, scheme="https" if context else "http")
    await server.start_server(ssl=context)
    try:
        yield str(server.make_url("/")).rstrip("/"), asked
    finally:
        await server.close()


def page(status: int, kind: str = "text/html", **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(
            status=status, body=LOGIN_PAGE, headers={"Content-Type": kind, **headers}
        )

    return answer


FOREIGN = {
    "captive portal": page(200),
    "login page elsewhere": page(302, Location="https://login.example/?token=hidden"),
    "firewall": page(403),
    "no such page": page(404),
    "balancer": page(502),
    "no server": page(503, "text/plain"),
    "too many": page(429, **{"Retry-After": "0"}),
    "network authentication": page(511),
    "unauthorised": page(401),
    "XHTML": page(200, "application/xhtml+xml; charset=utf-8"),
    "text": page(200, "text/plain"),
    "other JSON": page(403, "application/json"),
}
