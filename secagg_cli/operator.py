"""What an operator asks of a running aggregator, over HTTP with the operator's token."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from secagg.api import Problem, ServerInfo
from secagg.text_files import TextFile
from secagg_cli.output import CommandError

TOKEN_ENV = "SECAGG_OPERATOR_TOKEN"  # noqa: S105  the variable's name
_WHERE = (
    f"Set {TOKEN_ENV} or give --token-file; the aggregator keeps its token in operator.token in "
    "its data folder."
)
_TOKEN = TextFile(
    "file of the operator's token",
    CommandError,
    "operator-token",
    "operator-token",
    4_096,
    remedy=_WHERE,
)
SERVER_ENV = "SECAGG_SERVER"
_TIMEOUT_S = 60.0

ServerOption = Annotated[
    str, typer.Option(help="Base URL of the aggregator.", envvar=SERVER_ENV, show_default=True)
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(help=f"File with the operator's token; default: the variable {TOKEN_ENV}."),
]
DEFAULT_SERVER = "http://127.0.0.1:8080"


def read_token(file: Path | None) -> str:
    """Raises: CommandError ``operator-token`` when there is none that can be sent."""
    token = (_TOKEN.read(file) if file else os.environ.get(TOKEN_ENV, "")).strip()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise CommandError(
            "operator-token",
            f"What {file or TOKEN_ENV} holds is no token: a token is one word of ASCII.",
            remedy=_WHERE,
        )
    if not token:
        raise CommandError(
            "operator-token",
            "The operator's token is missing.",
            remedy=_WHERE,
        )
    return token


class Operator:
    """Blocking calls, one connection each.

    Every method raises :class:`CommandError`: ``server-unreachable``, or the aggregator's own
    reason.
    """

    def __init__(self, server: str, token: str) -> None:
        self.server = server.rstrip("/")
        self._token = token

    def add_partner(self, name: str, key: bytes) -> None:
        self._call("POST", "/v1/operator/partners", {"name": name, "key": key})

    def partners(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self._json("GET", "/v1/operator/partners")["partners"]
        return listed

    def remove_partner(self, key: bytes) -> list[str]:
        """The open tasks that go on without it."""
        answer = self._json("POST", f"/v1/operator/partners/{key.hex()}/remove")
        tasks: list[str] = answer["tasks"]
        return tasks

    def devices(self) -> dict[str, Any]:
        """``bans`` and ``strikes``."""
        return self._json("GET", "/v1/operator/devices")

    def ban(self, key: bytes, note: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/operator/devices/{key.hex()}/ban", {"note": note})

    def unban(self, key: bytes) -> None:
        self._call("POST", f"/v1/operator/devices/{key.hex()}/unban")

    def evidence(self, key: bytes) -> bytes:
        return self._call("GET", f"/v1/operator/devices/{key.hex()}/evidence")

    def create_task(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("POST", "/v1/operator/tasks", spec)

    def tasks(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self._json("GET", "/v1/operator/tasks")["tasks"]
        return listed

    def task(self, name: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/operator/tasks/{name}")

    def pause(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{name}/pause")

    def resume(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{name}/resume")

    def model(self, name: str) -> bytes:
        """The task's current global vector as a safetensors file."""
        return self._call("GET", f"/v1/operator/tasks/{name}/model")

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self._call(method, path, body)
        return msgspec.json.decode(answer, type=dict[str, Any]) if answer else {}

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}"}
        return request(method, self.server + path, headers, body)


def server_info(server: str) -> ServerInfo:
    """The aggregator's public keys. Compare them over a second channel before trusting them."""
    return msgspec.json.decode(request("GET", server.rstrip("/") + "/v1/server"), type=ServerInfo)


def request(
    method: str, url: str, headers: Mapping[str, str] | None = None, body: object = None
) -> bytes:
    """One HTTP request; ``body`` travels as it is (bytes), or else as JSON."""
    return asyncio.run(_request(method, url, dict(headers or {}), body))


async def _request(method: str, url: str, headers: dict[str, str], body: object) -> bytes:
    import aiohttp

    data: bytes | None = None
    if isinstance(body, bytes):
        headers["Content-Type"] = "application/octet-stream"
        data = body
    elif body is not None:
        headers["Content-Type"] = "application/json"
        data = msgspec.json.encode(body)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, url, headers=headers, data=data) as response,
        ):
            content = await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise CommandError(
            "server-unreachable",
            f"{url} did not answer: {type(error).__name__}: {error}",
            remedy="Is `secagg serve` running, and is --server its address?",
        ) from error
    if status >= 400:
        raise _problem(url, status, content)
    return content


def _problem(url: str, status: int, content: bytes) -> CommandError:
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        return CommandError(f"http-{status}", f"{url} answered with status {status}.")
    return CommandError(problem.reason, problem.message, remedy=problem.remedy)
