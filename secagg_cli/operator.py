"""What an operator asks of a running aggregator, over HTTP with the operator's token."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import typer

from secagg.api import Problem, ServerInfo
from secagg.text_files import TextFile
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from aggregator.views import (
        BanMade,
        DeviceList,
        PartnerView,
        TaskCreated,
        TaskRow,
        TaskView,
    )
    from dp.contracts import TaskSpec

_T = TypeVar("_T")
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

    Every method raises :class:`CommandError`: ``server-unreachable``, ``answer-malformed``, or the
    aggregator's own reason.
    """

    def __init__(self, server: str, token: str) -> None:
        self.server = server.rstrip("/")
        self._token = token

    def add_partner(self, name: str, key: bytes) -> None:
        from aggregator.views import PartnerBody

        self._call("POST", "/v1/operator/partners", PartnerBody(name=name, key=key))

    def partners(self) -> tuple[PartnerView, ...]:
        from aggregator.views import PartnerList

        return self._ask(PartnerList, "GET", "/v1/operator/partners").partners

    def remove_partner(self, key: bytes) -> tuple[str, ...]:
        """The open tasks that go on without it."""
        from aggregator.views import PartnerRemoved

        return self._ask(PartnerRemoved, "POST", f"/v1/operator/partners/{key.hex()}/remove").tasks

    def devices(self) -> DeviceList:
        from aggregator.views import DeviceList

        return self._ask(DeviceList, "GET", "/v1/operator/devices")

    def ban(self, key: bytes, note: str) -> BanMade:
        from aggregator.views import BanBody, BanMade

        return self._ask(
            BanMade, "POST", f"/v1/operator/devices/{key.hex()}/ban", BanBody(note=note)
        )

    def unban(self, key: bytes) -> None:
        self._call("POST", f"/v1/operator/devices/{key.hex()}/unban")

    def evidence(self, key: bytes) -> bytes:
        return self._call("GET", f"/v1/operator/devices/{key.hex()}/evidence")

    def create_task(self, spec: TaskSpec | Mapping[str, Any]) -> TaskCreated:
        """``spec``: a :class:`dp.contracts.TaskSpec`, or its fields as a file has them."""
        from aggregator.views import TaskCreated

        return self._ask(TaskCreated, "POST", "/v1/operator/tasks", spec)

    def tasks(self) -> tuple[TaskRow, ...]:
        from aggregator.views import TaskList

        return self._ask(TaskList, "GET", "/v1/operator/tasks").tasks

    def task(self, name: str) -> TaskView:
        from aggregator.views import TaskView

        return self._ask(TaskView, "GET", f"/v1/operator/tasks/{name}")

    def pause(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{name}/pause")

    def resume(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{name}/resume")

    def model(self, name: str) -> bytes:
        """The task's current global vector as a safetensors file."""
        return self._call("GET", f"/v1/operator/tasks/{name}/model")

    def _ask(self, kind: type[_T], method: str, path: str, body: object = None) -> _T:
        """The answer as a view.

        Raises:
            CommandError: ``answer-malformed``.
        """
        answer = self._call(method, path, body)
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CommandError(
                "answer-malformed",
                f"The answer of {self.server}{path} is not a {kind.__name__}: {error}.",
                remedy="Is --server the address of an aggregator of about this version?",
            ) from error

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
