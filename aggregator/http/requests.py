"""Each request has an id, which its lines in the log and its answer carry."""

from __future__ import annotations

import ipaddress
import secrets

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aggregator.audit import BROKEN_OFF, Status
from aggregator.intake.callers import REMOTE
from aggregator.logs import carrying, get_logger, shown

_log = get_logger("http")
HEADER = "X-Request-Id"
_ID = web.RequestKey("id", str)
BEGUN = web.RequestKey("begun", bool)


def new_id() -> str:
    return secrets.token_hex(8)


def id_of(request: web.BaseRequest | None) -> str | None:
    return None if request is None else request.get(_ID)


def identified(behind_proxy: bool) -> Middleware:
    """Give each request its id; its lines carry id and address until it is answered."""

    remote_of = _Remote(behind_proxy)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[_ID] = new_id()
        request[REMOTE] = remote = remote_of(request)
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


class _Remote:
    """Tells the caller's address. ``behind_proxy``: by what the proxy says, if it can be read."""

    def __init__(self, behind_proxy: bool) -> None:
        self._behind_proxy = behind_proxy
        self._told: set[str] = set()

    def __call__(self, request: web.Request) -> str:
        direct = request.remote or "unknown"
        if not self._behind_proxy:
            return direct
        # The proxy appends the address that it sees; what stands before is hearsay.
        said = request.headers.getall("X-Forwarded-For", [""])[-1].rpartition(",")[2].strip()
        address = _address(said)
        if address is None:
            self._tell("forwarded-for-unreadable" if said else "forwarded-for-missing", said)
        return address or direct

    def _tell(self, event: str, said: str) -> None:
        """Once: whoever reaches the port could else fill the log."""
        if event not in self._told:
            self._told.add(event)
            _log.warning(
                event,
                found=shown(said, 100),
                remedy="behind_proxy is set, and this request's caller is taken to be whoever "
                "connected: let the proxy append the address that it sees to X-Forwarded-For.",
            )


def _address(said: str) -> str | None:
    """An IP address, with a port or without."""
    host, _, port = said.rpartition(":")
    for text in (said, host if port.isdigit() else ""):
        try:
            return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
        except ValueError:
            pass
    return None
