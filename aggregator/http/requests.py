"""Each request has an id, which its lines in the log and its answer carry."""

from __future__ import annotations

import ipaddress
import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aggregator.audit import BROKEN_OFF, Status
from aggregator.intake.callers import REMOTE
from aggregator.logs import carrying

HEADER = "X-Request-Id"
_ID = web.RequestKey("id", str)
BEGUN = web.RequestKey("begun", bool)


def new_id() -> str:
    return secrets.token_hex(8)


def id_of(request: web.BaseRequest | None) -> str | None:
    return None if request is None else request.get(_ID)


def identified(behind_proxy: bool) -> Middleware:
    """Give each request its id; its lines carry id and address until it is answered."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_ID] = new_id()
        request[REMOTE] = remote = _remote(request, behind_proxy)
        with carrying(request_id=request[_ID], remote=remote):
            return await handler(request)

    return middleware


async def note_begun(request: web.Request, response: web.StreamResponse) -> None:
    """For ``on_response_prepare``: from now on bytes of an answer may be under way."""
    request[BEGUN] = True


async def show_id(request: web.Request, response: web.StreamResponse) -> None:
    """For ``on_response_prepare``."""
    if (name := id_of(request)) is not None:
        response.headers[HEADER] = name


def status_after(error: BaseException) -> Status:
    """What became of a request whose handler raised."""
    return error.status if isinstance(error, web.HTTPException) else BROKEN_OFF


def _remote(request: web.Request, behind_proxy: bool) -> str:
    if behind_proxy:  # the proxy appends the address that it sees; what stands before is hearsay
        said = request.headers.getall("X-Forwarded-For", [""])[-1].rpartition(",")[2].strip()
        try:
            return str(ipaddress.ip_address(said))
        except ValueError:
            pass
    return request.remote or "unknown"
