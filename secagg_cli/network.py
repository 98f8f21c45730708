"""How commands reach others: the SDK's own way out, and options for TLS.

Proxies are the environment's (:mod:`secagg.proxies`). A command that nobody answered who could
exits with 3 (:mod:`secagg_cli.output`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import msgspec
import typer

from secagg_cli.output import CommandError, UnusableArgument

if TYPE_CHECKING:
    from client_sdk.errors import TransportError
    from client_sdk.network.http import TransportSettings

CA_FILE_ENV = "SECAGG_CA_FILE"
_REQUEST_S = 60.0
_PATIENCE_S = 5.0  # of a question that changes nothing
_ANSWER_BYTES_MAX = 4 << 30  # a model
_tls: dict[str, Any] = {}  # of this command line


class NotReached(CommandError):
    """Nobody answered who could: nothing is known of what was asked for."""

    unreached = True


_CaFileOption = Annotated[
    Path | None,
    typer.Option(
        envvar=CA_FILE_ENV,
        help="PEM file of the authorities to trust in https, in place of the system's.",
    ),
]
_CertificateOption = Annotated[
    Path | None,
    typer.Option(
        envvar="SECAGG_CLIENT_CERTIFICATE",
        help="PEM file of the certificate to show to a server that asks for one.",
    ),
]
_KeyOption = Annotated[
    Path | None,
    typer.Option(
        envvar="SECAGG_CLIENT_KEY",
        help="PEM file of that certificate's key; default: in the same file.",
    ),
]
_OPTIONS = {
    "ca_file": _CaFileOption,
    "client_certificate": _CertificateOption,
    "client_key": _KeyOption,
}


def networked(command: Callable[..., None]) -> Callable[..., None]:
    """A command that speaks HTTP, with ``--ca-file``, ``--client-certificate`` and
    ``--client-key``, which :func:`transport_settings` reads."""

    @functools.wraps(command)
    def run(*args: Any, **named: Any) -> None:
        global _tls
        _tls = {name: named.pop(name) for name in _OPTIONS}
        command(*args, **named)

    own = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _OPTIONS.items()
    ]
    parameters = [*own.parameters.values(), *options]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


def transport_settings(**changed: Any) -> TransportSettings:
    """The SDK's, with this command line's files for TLS.

    Raises:
        UnusableArgument: ``ca-file``, ``client-certificate``, ``client-key-permissions``.
    """
    from client_sdk.network.connections import NetworkError, tls_context
    from client_sdk.network.http import TransportSettings

    if any(_tls.values()):
        try:
            tls_context(**_tls)
        except NetworkError as error:
            raise UnusableArgument(error.reason, error.message, remedy=error.remedy) from error
    return TransportSettings(**_tls, **changed)


def base_url(server: str) -> str:
    """The address of an aggregator, without a slash at its end.

    Raises:
        UnusableArgument: ``server-url``.
    """
    try:
        parts = urlsplit(server)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        usable = usable and (parts.port or 1) > 0 and not (parts.query or parts.fragment)
        usable = usable and parts.username is None and parts.password is None
    except ValueError:
        usable = False
    if not usable:
        raise UnusableArgument(
            "server-url",
            "The server's address cannot be used.",
            expected="http://HOST:PORT or https://HOST, without user, query and fragment",
            found=None if "@" in server else server,  # it may hold a password
            remedy="Give --server or SECAGG_SERVER such an address, http:// or https:// first.",
        )
    return server.rstrip("/")


def request(
    method: str, server: str, path: str, token: str | None = None, body: object = None
) -> bytes:
    """One HTTP request; ``body`` travels as it is (bytes), or else as JSON.

    GET is repeated for a while if somebody between answers, or nobody in time.

    Raises:
        CommandError: the aggregator's own reason. NotReached: ``server-unreachable``, or another of
            :class:`client_sdk.errors.Unreached`. UnusableArgument: ``server-url``, and as
            :func:`transport_settings`.
    """
    from client_sdk.errors import TransportError

    settings = transport_settings(patience_s=_PATIENCE_S, request_s=_REQUEST_S)
    try:
        return asyncio.run(_request(method, base_url(server), path, token, body, settings))
    except TransportError as error:
        raise told(error) from error


def told(error: TransportError) -> CommandError:
    """A refusal of the SDK as a command tells it."""
    if not error.unreached:
        return CommandError(error.reason, error.message, remedy=error.remedy)
    if error.reason not in ("unreachable", "deadline"):
        return NotReached(error.reason, error.message, remedy=error.remedy)
    return NotReached(
        "server-unreachable",
        error.message,
        remedy="Is `secagg serve` running, and is --server its address? NO_PROXY lists hosts that "
        "need no proxy.",
    )


async def _request(
    method: str,
    server: str,
    path: str,
    token: str | None,
    body: object,
    settings: TransportSettings,
) -> bytes:
    from client_sdk.errors import TransportError
    from client_sdk.network.connections import foreign
    from client_sdk.network.http import QUOTED_BYTES, Http, network_of, read_capped

    headers: dict[str, str] = {}
    data = body if isinstance(body, bytes) else None
    if body is not None and data is None:
        headers, data = {"Content-Type": "application/json"}, msgspec.json.encode(body)
    final: list[TransportError] = []

    async def once() -> bytes | None:
        try:
            async with http.request(
                method, path, data, headers=headers, auth=token is not None
            ) as response:
                if response.content_type.startswith("text/"):  # nothing that commands ask for is
                    raise foreign(response, await response.content.read(QUOTED_BYTES))
                return await read_capped(response, _ANSWER_BYTES_MAX)
        except TransportError as error:
            if error.reason != "unreachable":
                raise
            final.append(error)  # nobody is there: the user need not wait to hear that
            return None

    async with network_of(settings) as network:
        http = Http(server, lambda _: token or "", network, settings)
        content = await (http.retry(once) if method == "GET" else once())
    if content is None:
        raise final[-1]
    return content


def go_straight_to(host: str) -> None:
    """No proxy of the environment is asked for this host, by this process and its children."""
    listed = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = f"{host},{listed}" if listed else host
