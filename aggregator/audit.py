"""The operators' audit log: who did what, from where, and with which result, one JSON line each.

Lines go to the file of the setting ``audit_log``, or to standard error among the others, at every
level of the log. No act of an operator is left out. Of wrong tokens and missing ones, which anybody
can send, each address has a few lines a minute of each reason, and then a count
(:mod:`aggregator.logs.repeats`). A line that the file does not take goes to standard error.
"""

from __future__ import annotations

import datetime
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from aggregator.logs import get_logger
from aggregator.logs.repeats import LeftOut, Repeats
from secagg.errors import ConfigurationError

_log = get_logger("audit")
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # Windows has none
_NOT_ADMITTED = (401, 403, 429)
BROKEN_OFF: Literal["broken off"] = "broken off"  # the caller left before its answer was whole
_Caller = tuple[str, str | None]  # its address, and why it was refused
Status = int | Literal["broken off"]


@dataclass(frozen=True, kw_only=True)
class Action:
    """``who``: pseudonym of the token that came; None: none came. ``subject``: what it was about,
    by names that are no secret. ``reason``: why it was refused."""

    who: str | None
    action: str
    subject: dict[str, str]
    remote: str
    request_id: str
    status: Status
    reason: str | None


class AuditLog:
    def __init__(self, file: Path | None, clock: Callable[[], float]) -> None:
        """
        Raises:
            ConfigurationError: ``audit-log-unwritable``.
        """
        self._file = file
        self._clock = clock
        self._not_admitted: Repeats[_Caller] = Repeats()
        self._begins = b""  # what ends a line that did not come whole into the file
        if file is not None:
            try:
                os.close(self._open(file))
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    "audit-log-unwritable",
                    f"The operators' audit log {file} cannot be opened: {error}.",
                    remedy="Name with audit_log a file that this user may write, or leave it out.",
                ) from error

    def write(self, done: Action) -> None:
        """Append one line. What the file does not take goes to the service's own log."""
        if done.status in _NOT_ADMITTED:
            caller = (done.remote, done.reason)
            admitted, ended = self._not_admitted.admit(caller, time.monotonic())
            self._tell(ended)
            if not admitted:
                return
        self._put(
            "operator",
            {name: value for name, value in vars(done).items() if value not in (None, {})},
        )

    def tell_left_out(self) -> None:
        """Say now what was left out since it was last said."""
        self._tell(self._not_admitted.rest(time.monotonic()))

    def _tell(self, ended: list[LeftOut[_Caller]]) -> None:
        for left in ended:
            line: dict[str, object] = {"count": left.count, "seconds": round(left.seconds, 1)}
            if left.kind is not None:  # None: of many
                line["of_remote"], line["of_reason"] = left.kind
            self._put("lines-left-out", line)

    def _put(self, event: str, line: dict[str, object]) -> None:
        if self._file is None:
            _log.info(event, **line)
            return
        moment = datetime.datetime.fromtimestamp(self._clock(), datetime.UTC)
        stamped = {"timestamp": moment.isoformat(), "event": event, **line}
        try:
            descriptor = self._open(self._file)
            try:
                self._append(descriptor, msgspec.json.encode(stamped) + b"\n")
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # ValueError: text that is not UTF-8
            _log.exception("audit-log-failed", file=str(self._file))
            _log.info(event, **line)

    def _append(self, descriptor: int, line: bytes) -> None:
        """Raises: OSError: also where a part alone was written."""
        data = self._begins + line
        written = os.write(descriptor, data)
        if written < len(data):
            self._begins = b"\n"
            raise OSError(errno.ENOSPC, f"{written} of {len(data)} bytes were written")
        self._begins = b""

    def _open(self, file: Path) -> int:
        """Opened for each line, so that the file may be moved away to begin a new one. A named pipe
        that nobody reads, or not fast enough, is an error instead of a wait."""
        return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AT_ONCE, 0o600)
