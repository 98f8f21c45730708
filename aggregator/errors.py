"""What the service refuses, without HTTP: :mod:`aggregator.http.problems` has each kind's
status."""

from __future__ import annotations

import enum

from secagg.errors import SecaggError


class Kind(enum.Enum):
    """Whose turn it is after a refusal, and what it takes."""

    MALFORMED = "it cannot be read"
    UNAUTHENTICATED = "the caller has not shown who it is"
    FORBIDDEN = "this caller may not"
    NOT_FOUND = "there is no such thing"
    TOO_SLOW = "it took too long to come"
    CONFLICT = "as things stand it cannot be"
    TOO_LARGE = "it is larger than it may be"
    INVALID = "it can be read, but never be"
    TOO_MANY = "this caller has too much under way"
    BUSY = "the service has too much under way"


class Refusal(SecaggError):
    """A request that is refused. ``retry_after_s``: when it is worth another try."""

    def __init__(
        self,
        kind: Kind,
        reason: str,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        remedy: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        self.kind = kind
        self.retry_after_s = retry_after_s
        super().__init__(reason, message, expected=expected, found=found, remedy=remedy)


class LeftToOthers(Exception):
    """This replica cannot take a step of a cohort, and another may: nothing is decided.

    Like :class:`DatabaseAway` it is not a :class:`SecaggError`. ``refusal``: what a device that
    asked for the step is told.
    """

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal
        super().__init__(str(refusal))


class DatabaseAway(Exception):
    """The database did not answer; it may do so later.

    It is not a :class:`SecaggError`: no device and no message is at fault. ``cause``: what the
    driver raised.
    """

    def __init__(self, address: str, cause: BaseException) -> None:
        """``address``: without user and password."""
        self.cause = cause
        why = f"{type(cause).__name__}: {cause}"
        if isinstance(cause, FileNotFoundError):  # without a name, as if it were a file of ours
            why = "no server listens at its Unix socket (FileNotFoundError)"
        super().__init__(f"{address} did not answer: {why}")


_LISTED = {
    "task": "Check the name; `secagg task list` shows the operator the tasks.",
    "partner": "Check the key; `secagg partner list` shows the partners.",
    "ban": "Check the device's key; `secagg device list` shows who is banned.",
    "evidence": "`secagg device list` shows the operator which bans have evidence.",
}
_NAME_SHOWN = 100


def not_found(what: str, name: str = "") -> Refusal:
    """``name``: as the caller gave it."""
    named = f" {name[:_NAME_SHOWN]!r}" if name else ""
    return Refusal(
        Kind.NOT_FOUND,
        "not-found",
        f"There is no {what}{named} here.",
        remedy=_LISTED.get(what, "Check the name, and that this is the right aggregator."),
    )


def conflict(
    reason: str,
    message: str,
    *,
    expected: object = None,
    found: object = None,
    remedy: str | None = None,
) -> Refusal:
    return Refusal(Kind.CONFLICT, reason, message, expected=expected, found=found, remedy=remedy)
