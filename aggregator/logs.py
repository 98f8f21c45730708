"""Structured logs: one JSON object per line on standard error.

What is logged are names, counts, phases, reasons and durations; never bodies, keys, shares, tokens
or headers. As a second line of defence, a processor replaces every byte string and everything
under a name that sounds like a secret. The loggers do not depend on structlog's global
configuration, whose default prints the local variables of a traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from secagg.secret import Secret

_SECRET_NAMES = ("token", "secret", "key", "share", "payload", "body", "authorization", "seed")
_threshold = logging.INFO


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace byte strings, secrets and values under secret-sounding names by a placeholder."""
    for name, value in event.items():
        hidden = isinstance(value, bytes | bytearray | memoryview | Secret)
        if hidden or any(part in name.lower() for part in _SECRET_NAMES):
            event[name] = "<redacted>"
    return event


def _with_cause(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Tell what ``exception`` is called about, which this kind of logger leaves out: the traceback,
    without local variables."""
    if method == "exception":
        event.setdefault("exc_info", True)
    return event


def _drop_below_threshold(
    _: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if logging.getLevelNamesMapping().get(event["level"].upper(), logging.INFO) < _threshold:
        raise structlog.DropEvent
    return event


class _StandardError:
    """Looks ``sys.stderr`` up at each line, so that a redirection holds."""

    def msg(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    debug = info = warning = error = critical = exception = msg


_PROCESSORS: list[Any] = [
    structlog.processors.add_log_level,
    _drop_below_threshold,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    redact,
    _with_cause,
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(sort_keys=True, default=lambda value: "<redacted>"),
]


class _Libraries(logging.Handler):
    """Sends what libraries log the same way, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        log = get_logger(record.name)
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell(record.getMessage(), exc_info=record.exc_info)


def configure(level: str = "INFO") -> None:
    """Set the level of our logs, and send the standard library's warnings the same way."""
    global _threshold
    _threshold = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    logging.basicConfig(level=logging.WARNING, handlers=[_Libraries()], force=True)


def get_logger(component: str) -> Any:
    return structlog.wrap_logger(
        _StandardError(),
        processors=_PROCESSORS,
        wrapper_class=structlog.BoundLogger,
        context_class=dict,
        component=component,
    )
