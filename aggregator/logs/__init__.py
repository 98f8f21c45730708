"""Structured logs: one JSON object per line on standard error.

What is logged are names, counts, phases, reasons and durations; never bodies, keys, shares, tokens
or headers. As a second line of defence, a processor replaces every byte string and everything
under a name that sounds like a secret, and texts that others made are searched for what could be
one. The loggers do not depend on structlog's global configuration, whose default prints the local
variables of a traceback.

A failure is told with its type, its text, a traceback of bounded length and what the request under
way carries. One of the database is told with the type and the text that its driver gave, and with
frames of our own alone. The same failure again and again is counted, not written (:mod:`.repeats`).

Logging changes nothing of what the service does: no call raises. A line that cannot be made or
written, such as on a full disk or to a pipe whose reader died, is lost and counted
(``secagg_log_failures_total``).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog
from prometheus_client import Counter

from aggregator.errors import DatabaseAway
from aggregator.logs.context import carried, carry, carrying
from aggregator.logs.redaction import shown
from aggregator.logs.repeats import LeftOut, Repeats
from secagg.errors import SecaggError
from secagg.secret import Secret

__all__ = [
    "carry",
    "carrying",
    "configure",
    "failures",
    "get_logger",
    "redact",
    "shown",
    "tell_left_out",
    "tell_refused_start",
]

_SECRET_NAMES = ("token", "secret", "key", "share", "payload", "body", "authorization", "seed")
_MESSAGE_MAX = 600  # characters of an error's text
_TRACEBACK_MAX = 8_000
_FRAMES_MAX = 25  # of each error of a chain, the innermost
_DRIVERS = ("aiosqlite", "asyncpg", "sqlalchemy", "sqlite3")
_OURS = ("aggregator", "dp", "secagg", "secagg_cli")
_KIND = ("component", "level", "event", "reason", "error", "route", "task", "witness")
_AT_EVERY_LEVEL = ("audit", "logs")  # acts of operators, and counts of what was left out
_threshold = logging.INFO
failures = Counter(
    "secagg_log_failures", "Lines of the log that could not be written", registry=None
)
_always: dict[str, object] = {}  # in every line of this process
_Repeats = Repeats[tuple[object, ...]]
_failures, _refusals = _Repeats(), _Repeats()  # apart, so that callers crowd out no failure


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace byte strings, secrets and values under secret-sounding names by a placeholder."""
    for name, value in event.items():
        hidden = isinstance(value, bytes | bytearray | memoryview | Secret)
        if hidden or any(part in name.lower() for part in _SECRET_NAMES):
            event[name] = "<redacted>"
    return event


def _with_context(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in {**_always, **carried()}.items():
        event.setdefault(name, value)
    return event


def _with_cause(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Tell what ``exception`` is called about, which this kind of logger leaves out: type, text and
    traceback, without local variables."""
    given = event.pop("exc_info", method == "exception")
    if isinstance(given, tuple):
        given = given[1]
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is None:
        return event
    cause = _cause(error)
    event["error"] = _name_of(type(cause or error))
    away = isinstance(error, DatabaseAway)  # whose text has the cause's, and the address
    event["message"] = shown(str(error if away or cause is None else cause), _MESSAGE_MAX)
    if isinstance(error, SecaggError):
        event.setdefault("reason", error.reason)
    if cause is None:
        lines = traceback.format_exception(error, limit=-_FRAMES_MAX)
        event["exception"] = shown("".join(lines), _TRACEBACK_MAX)
    elif frames := _own_frames(error.__traceback__):
        event["exception"] = shown("".join(["Traceback:\n", *frames]), _TRACEBACK_MAX)
    return event


def _cause(error: BaseException) -> BaseException | None:
    """What the driver raised, where the database failed; else None."""
    if isinstance(error, DatabaseAway):
        return error.cause
    if type(error).__module__.partition(".")[0] not in _DRIVERS:
        return None
    original: BaseException = getattr(error, "orig", None) or error
    return original.__cause__ or original


def _own_frames(trace: TracebackType | None) -> list[str]:
    """The innermost; those of libraries only show how a statement reached its driver."""
    own = [
        (frame, line)
        for frame, line in traceback.walk_tb(trace)
        if frame.f_globals.get("__name__", "").partition(".")[0] in _OURS
    ]
    return traceback.StackSummary.extract(iter(own[-_FRAMES_MAX:])).format()


def _name_of(kind: type) -> str:
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


def _drop_below_threshold(
    _: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    level = logging.getLevelNamesMapping().get(event["level"].upper(), logging.INFO)
    if level < _threshold and event["component"] not in _AT_EVERY_LEVEL:
        raise structlog.DropEvent
    return event


def _drop_repeats(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Failures and refusals are what others can bring about as often as they like; what is
    critical they cannot."""
    refused = event["event"] == "refused"
    if event["level"] in ("debug", "info", "critical") and not refused:
        return event
    kind = tuple(event.get(name) for name in _KIND)
    admitted, ended = (_refusals if refused else _failures).admit(kind, time.monotonic())
    _tell(ended)
    if not admitted:
        raise structlog.DropEvent
    return event


def _tell(ended: list[LeftOut[tuple[object, ...]]]) -> None:
    for left in ended:
        kind = left.kind or ()  # of many kinds
        named = {f"of_{name}": value for name, value in zip(_KIND, kind, strict=False) if value}
        _counts.info("lines-left-out", count=left.count, seconds=round(left.seconds, 1), **named)


def tell_left_out() -> None:
    """Say now what was left out since it was last said."""
    for repeats in (_failures, _refusals):
        _tell(repeats.rest(time.monotonic()))


class _StandardError:
    """Looks ``sys.stderr`` up at each line, so that a redirection holds."""

    def msg(self, line: str) -> None:
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # none, full or broken, closed
            failures.inc()

    debug = info = warning = error = critical = exception = msg


_PROCESSORS: list[Any] = [
    structlog.processors.add_log_level,
    _drop_below_threshold,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    _with_context,
    redact,
    _with_cause,
    _drop_repeats,
    structlog.processors.JSONRenderer(sort_keys=True, default=lambda value: "<redacted>"),
]


class _Logger(structlog.BoundLogger):
    """Raises nothing: its callers are callbacks, ``except`` clauses and loops that must go on."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> None:
        try:
            super()._proxy_to_logger(method_name, event, **fields)
        except Exception as error:  # such as an exception whose text cannot be made
            failures.inc()
            told = {"event": "line-not-made", "level": "error", "of_event": shown(str(event), 100)}
            self._logger.msg(json.dumps({**told, "error": type(error).__name__}))


class _Libraries(logging.Handler):
    """Sends what libraries log the same way, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        log = get_logger(record.name)
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        try:
            text = record.getMessage()
        except Exception:  # its arguments do not fit
            text = str(record.msg)
        tell(shown(text, _MESSAGE_MAX), exc_info=record.exc_info)


def configure(level: str = "INFO") -> None:
    """Set the level of our logs, and send the standard library's warnings the same way."""
    global _threshold, _failures, _refusals
    _threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    _failures, _refusals = _Repeats(), _Repeats()
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)


def tell_refused_start(error: SecaggError) -> None:
    """One line about a service that does not start."""
    get_logger("main").critical(
        "start-refused",
        reason=error.reason,
        message=shown(error.message, _MESSAGE_MAX),
        expected=error.expected,
        found=error.found,
        remedy=error.remedy,
    )


def take_over(replica: str) -> None:
    """Send what Python itself would print the same way: errors of threads, errors that nobody can
    catch, and warnings. Every line names the replica. For a process that is ours alone."""
    _always["replica"] = replica
    logging.captureWarnings(True)
    log = get_logger("python")

    def of_thread(told: threading.ExceptHookArgs) -> None:
        log.error("thread-failed", exc_info=told.exc_value)

    def unraisable(told: Any) -> None:
        log.error("error-ignored", exc_info=told.exc_value)

    threading.excepthook = of_thread
    sys.unraisablehook = unraisable


def get_logger(component: str) -> Any:
    return structlog.wrap_logger(
        _StandardError(),
        processors=_PROCESSORS,
        wrapper_class=_Logger,
        context_class=dict,
        component=component,
    )


_counts = get_logger("logs")
