"""What an operator asks of a running aggregator, over HTTP with the operator's token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec
import typer

from secagg.files.text import TextFile
from secagg.http_api import ServerInfo
from secagg_cli.network import base_url, request
from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from aggregator.views import (
        BanMade,
        CohortAborted,
        DeviceList,
        PartnerView,
        TaskCreated,
        TaskPlanned,
        TaskRow,
        TaskView,
        TokenRotated,
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
            f"What {file or TOKEN_ENV} holds is not a token: a token is one word of ASCII.",
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

    Every method raises :class:`CommandError` as :func:`secagg_cli.network.request`, or
    ``answer-malformed``.
    """

    def __init__(self, server: str, token: str) -> None:
        self.server = base_url(server)
        self._token = token

    @classmethod
    def at(cls, server: str, token_file: Path | None) -> Operator:
        """With the token of a file, or of the environment. Raises: as :func:`read_token`."""
        return cls(server, read_token(token_file))

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

    def plan_task(self, spec: TaskSpec | Mapping[str, Any]) -> TaskPlanned:
        """As :meth:`create_task`, and nothing is created."""
        from aggregator.views import TaskPlanned

        return self._ask(TaskPlanned, "POST", "/v1/operator/plans", spec)

    def tasks(self) -> tuple[TaskRow, ...]:
        from aggregator.views import TaskList

        return self._ask(TaskList, "GET", "/v1/operator/tasks").tasks

    def task(self, name: str) -> TaskView:
        from aggregator.views import TaskView

        return self._ask(TaskView, "GET", f"/v1/operator/tasks/{quote(name, safe='')}")

    def pause(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{quote(name, safe='')}/pause")

    def resume(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{quote(name, safe='')}/resume")

    def close(self, name: str) -> TaskView:
        from aggregator.views import TaskView

        return self._ask(TaskView, "POST", f"/v1/operator/tasks/{quote(name, safe='')}/close")

    def delete(self, name: str) -> None:
        self._call("POST", f"/v1/operator/tasks/{quote(name, safe='')}/delete")

    def abort_cohort(self, name: str) -> CohortAborted:
        from aggregator.views import CohortAborted

        path = f"/v1/operator/tasks/{quote(name, safe='')}/cohort/abort"
        return self._ask(CohortAborted, "POST", path)

    def rotate_token(self, digest: str, overlap_s: float) -> TokenRotated:
        """``digest``: SHA-256 of the new token, hex."""
        from aggregator.views import TokenBody, TokenRotated

        body = TokenBody(digest=digest, overlap_s=overlap_s)
        return self._ask(TokenRotated, "POST", "/v1/operator/token", body)

    def model(self, name: str) -> bytes:
        """The task's current global vector as a safetensors file."""
        return self._call("GET", f"/v1/operator/tasks/{quote(name, safe='')}/model")

    def _ask(self, kind: type[_T], method: str, path: str, body: object = None) -> _T:
        """The answer as a view.

        Raises:
            CommandError: ``answer-malformed``.
        """
        answer = self._call(method, path, body)
        return _decoded(answer, kind, self.server + path)

    def _call(self, method: str, path: str, body: object = None) -> bytes:
        return request(method, self.server, path, self._token, body)


def server_info(server: str) -> ServerInfo:
    """The aggregator's public keys. Compare them over a second channel before trusting them."""
    return _decoded(request("GET", server, "/v1/server"), ServerInfo, server)


def _decoded(answer: bytes, kind: type[_T], url: str) -> _T:
    """
    Raises:
        CommandError: ``answer-malformed``.
    """
    try:
        return msgspec.json.decode(answer, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CommandError(
            "answer-malformed",
            f"The answer of {url} is not a {kind.__name__}: {error}.",
            remedy="Is --server the address of an aggregator of about this version?",
        ) from error
