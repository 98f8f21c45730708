"""Opening connections, in one place for the device and the command line: proxies, roots of trust,
and what is made of everything that is not an answer of the server that was asked.

Nothing is logged, no redirect is followed, no content coding is asked for, and a certificate is
always verified.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Protocol
from urllib.parse import urlsplit

import aiohttp

from client_sdk.errors import ClientError, Unreached
from secagg.errors import ConfigurationError
from secagg.files.text import TextFile
from secagg.proxies import Proxy, proxy_for

_CA_BYTES_MAX = 16 << 20
_LINE_BYTES = 64  # of a head beside its fields: first line, and fields that aiohttp adds itself
_PIECE_BYTES = 1 << 16
_PAUSE_AFTER_BYTES = 64
_SHOWN_CHARACTERS = 200  # of what somebody else says
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_CHECK_NETWORK = "Check the network and the aggregator's address."
_CAPTIVE = (
    "Something between here and the aggregator answered in its place: a login page of this "
    "network, a proxy, a firewall or a load balancer. Open the address in a browser to see it; "
    "then try again."
)


class NetworkError(ClientError):
    """The app's own choices for the network cannot be used: a file of certificates, a variable."""


_OWN_KEY = TextFile(
    "key of the client certificate",
    NetworkError,
    "client-certificate",
    "client-certificate",
    private="client-key-permissions",
)


class Meter(Protocol):
    """Counts bytes of HTTP: heads and bodies, what is resent with them."""

    async def spend(self, count: int) -> None:
        """Count bytes that are about to pass; raises if they may not."""

    def give_back(self, count: int) -> None:
        """Bytes that were counted and did not pass; negative: that passed beyond them."""

    async def close(self) -> None:
        """Nothing passes any more."""


class Network:
    """Requests from this process. Use as an async context manager.

    Args:
        user_agent: how the app names itself.
        trust_env: whether the environment's proxies count (:mod:`secagg.proxies`).
        ca_file: PEM file of the only certificates of authorities to trust; None: those of the
            system, or of OpenSSL's ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
        client_certificate: PEM file of the certificate to show where one is asked for.
        client_key: PEM file of its key; None: in the same file.
        environment: variables; None: this process's.
        meter: counts what passes, before it does; None: nothing is counted.
    """

    def __init__(
        self,
        user_agent: str,
        *,
        trust_env: bool = True,
        ca_file: str | Path | None = None,
        client_certificate: str | Path | None = None,
        client_key: str | Path | None = None,
        environment: Mapping[str, str] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._user_agent = user_agent
        self._meter = meter
        self._environment = (
            (os.environ if environment is None else environment) if trust_env else {}
        )
        self._ca_file = ca_file
        self._own = (client_certificate, client_key)
        self._ssl: ssl.SSLContext | bool = True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Network:
        """Raises: NetworkError: as :func:`tls_context`."""
        if self._ca_file is not None or self._own != (None, None):
            self._ssl = tls_context(self._ca_file, *self._own)
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
            auto_decompress=False,
            connector=aiohttp.TCPConnector(use_dns_cache=False),  # an aggregator may move
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
        if self._meter is not None:
            await self._meter.close()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        pause_s: float = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request and its answer, of any status but a proxy's refusal, while it is read.

        The caller sets the deadline. A body is sent once. ``pause_s``: seconds after its first
        bytes; what is answered meanwhile ends it.

        Raises:
            Unreached: also while the answer is read.
        """
        if self._session is None:
            raise RuntimeError("use it as an async context manager")
        asked = f"{method} {url}"
        proxy = self._proxy(url)
        sent = dict(headers or {})
        to_proxy: dict[str, str] = {}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        if proxy is not None:
            (sent if url.startswith("http:") else to_proxy).update(proxy.headers)
        via = "" if proxy is None else f" through the proxy {proxy.url}"
        if self._meter is not None:
            await self._meter.spend(len(asked) + _head_bytes(sent) + len(body or b""))
        try:
            async with self._session.request(
                method,
                url,
                params=query,
                data=None if body is None else _once(body, pause_s),
                headers=sent,
                allow_redirects=False,
                proxy=None if proxy is None else proxy.url,
                proxy_headers=to_proxy if proxy is not None else None,
                ssl=self._ssl,
            ) as response:
                if response.status == 407 and proxy is not None:
                    _refused_by(proxy, asked, 407)
                async with _counted(response, self._meter):
                    yield response
        except aiohttp.ClientHttpProxyError as error:
            if proxy is None:
                raise
            _refused_by(proxy, asked, error.status)
        except aiohttp.ClientProxyConnectionError as error:
            raise Unreached(
                "proxy-unreachable",
                f"{asked}{via} failed: {_shown(error)}.",
                remedy="Check the proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names; NO_PROXY "
                "lists hosts that need none, such as 127.0.0.1.",
            ) from None
        except aiohttp.ClientConnectorCertificateError as error:
            raise _untrusted(f"{asked}{via}", error, self._ca_file, self._environment) from error
        except aiohttp.ClientSSLError as error:
            raise Unreached(
                "tls-failed",
                f"{asked}{via} failed: no TLS with {error.host}: {_shown(error)}.",
                remedy="Check that the address begins with what the server speaks, http:// or "
                "https://, and that nothing in between answers.",
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            if "CERTIFICATE_REQUIRED" in str(error):
                raise Unreached(
                    "tls-client-certificate",
                    f"{asked}{via} failed: the server asks for a certificate of yours.",
                    remedy="Give it as client_certificate and client_key (--client-certificate "
                    "and --client-key on the command line); the operator says who issues them.",
                ) from None
            raise Unreached(
                "unreachable",
                f"{asked}{via} failed: {_shown(error)}.",
                remedy=_CHECK_NETWORK
                + ("" if proxy is None else " NO_PROXY lists hosts that need no proxy."),
            ) from None  # of a proxy it would show the credentials

    def _proxy(self, url: str) -> Proxy | None:
        try:
            return proxy_for(url, self._environment)
        except ConfigurationError as error:
            raise Unreached(
                error.reason,
                error.message,
                expected=error.expected,
                found=error.found,
                remedy=error.remedy,
            ) from error
        except ValueError as error:  # the URL's own
            raise Unreached(
                "unreachable", f"{url} is not a URL: {error}.", remedy=_CHECK_NETWORK
            ) from error


@asynccontextmanager
async def _counted(response: aiohttp.ClientResponse, meter: Meter | None) -> AsyncIterator[None]:
    """Count an answer: what it promises before it is read, and then what came."""
    if meter is None:
        yield
        return
    promised = response.content_length or 0
    await meter.spend(_head_bytes(response.headers) + promised)
    try:
        yield
    finally:
        meter.give_back(promised - response.content.total_bytes)


def _head_bytes(headers: Mapping[str, str]) -> int:
    return _LINE_BYTES + sum(len(name) + len(value) + 4 for name, value in headers.items())


async def _once(body: bytes, pause_s: float) -> AsyncIterator[bytes]:
    """A body that aiohttp cannot send a second time by itself, as it does with bytes of a PUT."""
    begins = _PAUSE_AFTER_BYTES if pause_s else 0
    if begins:
        yield body[:begins]
        await asyncio.sleep(pause_s)
    for start in range(begins, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]


def foreign(
    response: aiohttp.ClientResponse, beginning: bytes, retry_after_s: float | None = None
) -> Unreached:
    """``answer-foreign``: an answer that the server that was asked does not give.

    ``beginning``: of its body, of which little is shown.
    """
    kind = _cut(response.headers.get("Content-Type", "no content type"), 60)
    location = response.headers.get("Location", "")
    led = f", and leads to {_origin(location)}" if location else ""
    begins = f", beginning {_cut(beginning.decode('latin-1'), 60)!r}" if beginning else ""
    return Unreached(
        "answer-foreign",
        f"The answer to {response.url.path} is not the aggregator's: "
        f"status {response.status}, {kind}{begins}{led}.",
        status=response.status,
        retry_after_s=retry_after_s,
        remedy=_CAPTIVE
        if response.status != 301 or not location
        else f"If the server has moved, give its new address. {_CAPTIVE}",
    )


def is_page(response: aiohttp.ClientResponse) -> bool:
    """Whether the answer is a page for people: no server of this project sends one to a program."""
    return response.content_type in ("text/html", "application/xhtml+xml")


def tls_context(
    ca_file: str | Path | None = None,
    client_certificate: str | Path | None = None,
    client_key: str | Path | None = None,
) -> ssl.SSLContext:
    """What to trust, and what to show.

    Raises:
        NetworkError: as :func:`trusted_by`; ``client-certificate``: it cannot be used, or is not
            of the key; ``client-key-permissions``: others may read the key.
    """
    context = ssl.create_default_context() if ca_file is None else trusted_by(Path(ca_file))
    if client_certificate is None:
        if client_key is not None:
            raise _bad_own("there is a key and no certificate")
        return context
    key = Path(client_key or client_certificate)
    _OWN_KEY.read(key)
    try:
        context.load_cert_chain(client_certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _bad_own(f"{client_certificate} with {key}: {why}") from error
    return context


def _bad_own(why: str) -> NetworkError:
    return NetworkError(
        "client-certificate",
        f"The certificate to show cannot be used: {why}.",
        expected="a certificate and its key in PEM form, the key without a password",
        remedy="Name both files of one issue: the certificate, and the key if it lies apart.",
    )


def trusted_by(ca_file: Path) -> ssl.SSLContext:
    """A context that trusts the certificates of a PEM file alone.

    Raises:
        NetworkError: ``ca-file``: it cannot be read, or holds no certificate.
    """
    try:
        with ca_file.open("rb") as file:
            content = file.read(_CA_BYTES_MAX + 1)
    except OSError as error:
        raise _bad_ca_file(ca_file, f"it cannot be read: {error.strerror or error}") from error
    found = _CERTIFICATE.findall(content[:_CA_BYTES_MAX])
    if not found:
        raise _bad_ca_file(ca_file, "it holds no certificate in PEM form")
    try:
        return ssl.create_default_context(cadata=b"\n".join(found).decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise _bad_ca_file(ca_file, f"a certificate in it does not parse: {error}") from error


def _bad_ca_file(ca_file: Path, why: str) -> NetworkError:
    return NetworkError(
        "ca-file",
        f"The file of trusted certificates {ca_file} cannot be used: {why}.",
        expected="-----BEGIN CERTIFICATE----- ...",
        remedy="Give a PEM file with the certificate of the authority that signed the server's.",
    )


def _refused_by(proxy: Proxy, asked: str, status: int) -> NoReturn:
    if status == 407:
        given = "none were given" if proxy.authorization is None else "those given are not taken"
        raise Unreached(
            "proxy-auth",
            f"The proxy {proxy.url} demands user and password for {asked}; {given}.",
            status=status,
            remedy="Give them in the variable: http://user:password@host:port.",
        ) from None
    raise Unreached(
        "proxy-refused",
        f"The proxy {proxy.url} answered {status} to {asked}.",
        status=status,
        remedy="Ask who runs the proxy to admit the aggregator's address, or list it in NO_PROXY.",
    ) from None


def _untrusted(
    asked: str,
    error: aiohttp.ClientConnectorCertificateError,
    ca_file: str | Path | None,
    environment: Mapping[str, str],
) -> Unreached:
    cause = error.certificate_error
    why = getattr(cause, "verify_message", None) or str(cause)
    trusted = environment.get("SSL_CERT_FILE", "the system's certificates")
    return Unreached(
        "tls-untrusted",
        f"{asked} failed: the certificate of {error.host} is not trusted: {_cut(why, 200)}.",
        expected=f"one that {ca_file or trusted} vouches for",
        remedy="If an authority of your own, or of a proxy that looks into TLS, signed it: give "
        "its certificate as ca_file (--ca-file on the command line). If it is of another name or "
        "has expired: check the address and this machine's clock, and ask the operator.",
    )


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {_cut(str(error), _SHOWN_CHARACTERS)}"


def _cut(text: str, most: int) -> str:
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return text if len(text) <= most else text[:most] + "..."


def _origin(location: str) -> str:
    """Scheme and host of where a redirect leads; what follows may be long, or somebody's secret."""
    try:
        parts = urlsplit(location)
        return _cut(f"{parts.scheme}://{parts.hostname}" if parts.hostname else "this server", 100)
    except ValueError:
        return "no address"
