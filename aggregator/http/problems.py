"""Refusals as HTTP says them: a status for each kind, and a problem document (RFC 9457)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from aggregator.errors import DatabaseAway, Kind, LeftToOthers, Refusal
from aggregator.http.requests import BEGUN, id_of
from aggregator.logs import get_logger
from aggregator.metrics import Metrics
from aggregator.store.blobs import BlobsUnavailable
from aggregator.store.database import Conflict
from secagg.errors import ConfigurationError, RemoteProtocolError, SecaggError
from secagg.http_api import PROBLEM_TYPE, Problem

_log = get_logger("http")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
STATUS: Mapping[Kind, int] = {
    Kind.MALFORMED: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.TOO_SLOW: 408,
    Kind.CONFLICT: 409,
    Kind.TOO_LARGE: 413,
    Kind.INVALID: 422,
    Kind.TOO_MANY: 429,
    Kind.BUSY: 503,
}
_OF_AIOHTTP = {404: "not-found", 405: "method-not-allowed", 413: "body-too-large"}
_URN = "urn:secagg:problem:"
_VALUE_MAX = 1_000  # characters of a value that is a member of its own
_VALUES_MAX = 64  # in a list
_EXACT = 1 << 53  # integers that every reader of JSON keeps
_BEFORE = "secagg-client/1"  # the User-Agent of devices that refuse members they do not know


class _Before(msgspec.Struct, frozen=True):
    """What devices older than problem documents parse."""

    reason: str
    message: str
    remedy: str | None


def respond(error: SecaggError, request: web.Request | None = None) -> web.Response:
    """The response for an error of ours, in the form that the sender of ``request`` reads."""
    status, headers = 500, {}
    if isinstance(error, Refusal):
        status = STATUS[error.kind]
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        if error.kind is Kind.UNAUTHENTICATED:
            headers["WWW-Authenticate"] = "Bearer"
    elif isinstance(error, RemoteProtocolError):
        status = STATUS[Kind.MALFORMED]
    elif isinstance(error, ConfigurationError):
        status = STATUS[Kind.INVALID]
    return problem(status, error, request, headers)


def problem(
    status: int,
    error: SecaggError,
    request: web.Request | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An error with a status of the caller's choice."""
    agent = "" if request is None else request.headers.get("User-Agent", "")
    if agent.partition(" ")[0] == _BEFORE:
        body, kind = encode_before(error), "application/json"
    else:
        body, kind = encode(status, error, id_of(request)), PROBLEM_TYPE
    return web.Response(status=status, body=body, content_type=kind, headers=headers)


def encode(status: int, error: SecaggError, request_id: str | None = None) -> bytes:
    """The problem document of an error. ``request_id``: under which the log has it."""
    return msgspec.json.encode(
        Problem(
            reason=error.reason,
            message=error.detail,
            remedy=error.remedy,
            type=_URN + error.reason,
            title=error.reason.replace("-", " ").capitalize(),
            status=status,
            detail=error.detail,
            expected=_member(error.expected),
            found=_member(error.found),
            request_id=request_id,
        )
    )


def encode_before(error: SecaggError) -> bytes:
    return msgspec.json.encode(_Before(error.reason, error.detail, error.remedy))


def _member(value: object) -> object:
    """A value as JSON has it, or as text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) <= _EXACT:
        return value
    if isinstance(value, list | tuple):
        return [_member(item) for item in value[:_VALUES_MAX]]
    return (value.hex() if isinstance(value, bytes) else str(value))[:_VALUE_MAX]


def problems(metrics: Metrics) -> Middleware:
    """Turn every exception into a problem; details of our own faults stay in the log. Once an
    answer has begun nothing may follow it: its connection is cut."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await answered(metrics, request, handler)

    return middleware


async def _whole(request: web.Request, handler: Handler) -> web.StreamResponse:
    """
    Raises:
        ConnectionResetError: the answer broke off, and its reader sees that it did.
    """
    try:
        return await handler(request)
    except ConnectionError:
        raise
    except Exception as error:
        if BEGUN not in request:
            raise
        _log.exception("answer-broken-off", route=_route(request))
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the answer broke off") from error


async def answered(metrics: Metrics, request: web.Request, handler: Handler) -> web.StreamResponse:
    """What :func:`problems` makes of a request."""
    try:
        return await _whole(request, handler)
    except SecaggError as error:
        _log.info("refused", route=_route(request), reason=error.reason)
        metrics.refusals.labels(error.reason).inc()
        return respond(error, request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        reason = _OF_AIOHTTP.get(error.status, "http")
        return problem(error.status, SecaggError(reason, error.reason or "Refused."), request)
    except ConnectionError:
        raise
    except BlobsUnavailable as error:
        _log.error("blobs-unavailable", route=_route(request), why=error.why, what=error.what)
        metrics.refusals.labels(error.reason).inc()
        return respond(
            Refusal(
                Kind.BUSY,
                error.reason,
                "The service's store of models and vectors does not answer.",
                remedy="Send the request again; the operator's log has the cause.",
                retry_after_s=1,
            ),
            request,
        )
    except LeftToOthers as error:
        metrics.refusals.labels(error.refusal.reason).inc()
        return respond(error.refusal, request)
    except DatabaseAway:  # which the database has logged
        _log.info("refused", route=_route(request), reason="database-away")
        metrics.refusals.labels("database-away").inc()
        return respond(
            Refusal(
                Kind.BUSY,
                "database-away",
                "The service's database does not answer.",
                remedy="Send the request again; the operator's log has the cause.",
                retry_after_s=2,
            ),
            request,
        )
    except Conflict:
        metrics.refusals.labels("busy").inc()
        return respond(
            Refusal(
                Kind.BUSY,
                "busy",
                "Another request changed the same thing at the same time.",
                remedy="Send the request again.",
                retry_after_s=1,
            ),
            request,
        )
    except Exception:
        _log.exception("failed", route=_route(request))
        return problem(
            500,
            SecaggError(
                "internal",
                "The service failed.",
                remedy=f"Retry; the operator's log has the cause (request {id_of(request)}).",
            ),
            request,
        )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return f"{request.method} {resource.canonical if resource else '?'}"
