"""Typed errors on the wire: every refusal is a ``Problem`` with a stable reason and a status."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from aggregator.logs import get_logger
from aggregator.metrics import Metrics
from aggregator.store.database import Conflict
from secagg.api import Problem
from secagg.errors import ConfigurationError, RemoteProtocolError, SecaggError

_log = get_logger("http")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(SecaggError):
    """A request that the service answers with ``status`` and a ``Problem``."""

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers or {}
        super().__init__(reason, message, expected=expected, found=found, remedy=remedy)


def not_found(what: str) -> Refusal:
    return Refusal(404, "not-found", f"There is no such {what}.")


def conflict(reason: str, message: str, **details: object) -> Refusal:
    return Refusal(409, reason, message, **details)  # type: ignore[arg-type]


def respond(error: SecaggError) -> web.Response:
    """The response for an error of ours."""
    status, headers = 500, {}
    if isinstance(error, Refusal):
        status, headers = error.status, error.headers
    elif isinstance(error, RemoteProtocolError):
        status = 400
    elif isinstance(error, ConfigurationError):
        status = 422
    message = error.message
    if values := error.values:
        message += f" {values[0].upper()}{values[1:]}."
    return problem(
        status, Problem(reason=error.reason, message=message, remedy=error.remedy), headers
    )


def problem(status: int, body: Problem, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers=headers,
    )


def problems(metrics: Metrics) -> Middleware:
    """Turn every exception into a ``Problem``; details of our own faults stay in the log."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await _answer(metrics, request, handler)

    return middleware


async def _answer(metrics: Metrics, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except SecaggError as error:
        _log.info("refused", route=_route(request), reason=error.reason)
        metrics.refusals.labels(error.reason).inc()
        return respond(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        reason = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}
        return problem(
            error.status,
            Problem(reason=reason.get(error.status, "http"), message=error.reason or "Refused."),
        )
    except ConnectionError:
        raise
    except Conflict:
        metrics.refusals.labels("busy").inc()
        return problem(
            503,
            Problem(
                reason="busy",
                message="Another request changed the same thing at the same time.",
                remedy="Send the request again.",
            ),
            {"Retry-After": "1"},
        )
    except Exception:
        _log.exception("failed", route=_route(request))
        return problem(
            500,
            Problem(
                reason="internal",
                message="The service failed.",
                remedy="Retry; the operator's log has the cause.",
            ),
        )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical if resource else '?'}"
