"""Which requests the operators' audit log tells, and what of them."""

from __future__ import annotations

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aggregator.audit import BROKEN_OFF, Action, Status
from aggregator.http.requests import id_of, status_after
from aggregator.intake.callers import REMOTE
from aggregator.service import Service
from secagg.http_api import Problem

_OPERATOR = "/v1/operator/"
_SUBJECT = web.RequestKey("subject", dict)
_SHOWN = 100  # characters of a name as it came
_HANDED_OUT = ("/model", "/evidence")  # of what is only read, these leave the service


def about(request: web.Request, **subject: str) -> None:
    """Name what the request is about beyond what its path says."""
    request[_SUBJECT] = subject


def audited(service: Service) -> Middleware:
    """Tell the audit log of what operators change and take out, and of all that is refused."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request)
        except BaseException as error:  # the caller left, or the service is being stopped
            tell(request, status_after(error), None)
            raise
        tell(request, response.status, reason_of(response))
        return response

    def tell(request: web.Request, status: Status, reason: str | None) -> None:
        resource = request.match_info.route.resource
        route = resource.canonical if resource else ""
        if not route.startswith(_OPERATOR):
            return
        read = request.method in ("GET", "HEAD") and not route.endswith(_HANDED_OUT)
        if read and (status == BROKEN_OFF or status < 400):
            return
        named = dict(request.match_info)
        if "/devices/" in route:  # a device's key is in no log
            key = bytes.fromhex(named.pop("key"))
            named["device"] = service.core.pseudonyms.device(key)
        elif "key" in named:
            named["partner"] = named.pop("key")
        service.audit.write(
            Action(
                who=service.callers.operator_name(request),
                action=f"{request.method} {route}",
                subject={name: value[:_SHOWN] for name, value in named.items()}
                | request.get(_SUBJECT, {}),
                remote=request[REMOTE],
                request_id=id_of(request) or "",
                status=status,
                reason=reason,
            )
        )

    return middleware


def reason_of(response: web.StreamResponse) -> str | None:
    """Of a problem document."""
    body = response.body if isinstance(response, web.Response) else None
    if response.status < 400 or not isinstance(body, bytes):
        return None
    try:
        return msgspec.json.decode(body, type=Problem).reason
    except msgspec.MsgspecError:
        return None
