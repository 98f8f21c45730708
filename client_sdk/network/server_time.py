"""What time it is: the aggregator's word, as far as a device can believe it.

Everything that a device judges by time (offers, adverts, certificates, report slots, deadlines,
access tokens) is judged by :meth:`ServerTime.now`. Three clocks bear on it, none trusted alone:

- the aggregator's word, which an aggregator could use to stretch a deadline or to bring back an
  expired certificate or advert;
- the device's own clock, which is often wrong. A word further from it than ``CLOCK_WRONG_S`` is
  not believed, and the run ends with an error that says by how much they differ;
- the device's steady clock, which nobody sets. From one word to the next, time moves on with it,
  so that nothing which the aggregator says moves the deadlines of a cohort under way.

A word more than ``DRIFT_S`` behind the latest time that this device has believed is not believed
either, also after a restart: that time lies sealed in the state folder.
"""

from __future__ import annotations

import datetime
import struct
import sys
import time
from collections.abc import Callable

from client_sdk.errors import ClockError, StateError
from client_sdk.state.journal import Journal

CLOCK_WRONG_S = 5_400.0  # own clock against the aggregator's: more than a missed summer time
DRIFT_S = 900.0  # replicas differ by seconds, and an operator who sets a clock moves it by minutes
_KEPT_EVERY_S = 60.0  # the latest time on disk is no older than this while a device is awake
_RECORD = "server-time"
_SECONDS = struct.Struct("<d")


def steady_clock() -> float:
    """Seconds of a clock that nobody sets, and that goes on during suspend where there is one."""
    if sys.platform == "win32":
        return time.monotonic()
    for name in ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):  # Linux; macOS
        if (clock := getattr(time, name, None)) is not None:
            return time.clock_gettime(clock)
    return time.monotonic()


class ServerTime:
    """The aggregator's time as one running client believes it, in Unix seconds."""

    def __init__(
        self,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_clock,
    ) -> None:
        """``journal`` remembers the latest time over restarts; without it nothing does.

        ``clock`` is Unix seconds on this device, ``steady`` seconds that nobody sets.

        Raises:
            StateError: ``state-damaged``.
        """
        self._journal = journal
        self._clock = clock
        self.steady = steady
        self._kept_s = _read(journal)
        self._latest = (self._kept_s, steady())  # the latest time believed, and when that was
        self._word: tuple[float, float] | None = None  # the last word believed, and when

    def now(self) -> float:
        """The last word that was believed, moved on by the steady clock.

        Before any word: this device's own clock.
        """
        if self._word is None:
            return self._clock()
        return self._moved_on(self._word)

    def believed(self) -> float | None:
        """:meth:`now`, if it rests on a word of the aggregator's; None before any."""
        return None if self._word is None else self.now()

    @property
    def wrong_by_s(self) -> float:
        """How far :meth:`now` may be from a word that would be believed."""
        return CLOCK_WRONG_S if self._word is None else 0.0

    def hear(self, said_s: float) -> None:
        """Believe the aggregator's word from now on, if it can be believed.

        Raises:
            ClockError: ``clock-wrong`` or ``server-time-back``; what was believed before stays.
        """
        own_s = self._clock()
        if not abs(said_s - own_s) <= CLOCK_WRONG_S:
            raise _clock_wrong(said_s, own_s)
        latest_s = self._moved_on(self._latest)
        if said_s < latest_s - DRIFT_S:
            raise ClockError(
                "server-time-back",
                f"The aggregator's time is {_span(latest_s - said_s)} behind the latest that this "
                "device has seen.",
                expected=f"{shown_time(latest_s - DRIFT_S)} or later",
                found=shown_time(said_s),
                remedy="Ask the operator whether the aggregator's clock was set back. If this "
                "device once believed a time that had not come, remove 'server-time' from its "
                "state folder.",
            )
        steady_s = self.steady()
        self._word = (said_s, steady_s)
        if said_s > latest_s:
            self._latest = (said_s, steady_s)
        self.keep()

    def keep(self) -> None:
        """Remember the latest time over restarts, at most once a minute."""
        latest_s = self._moved_on(self._latest)
        if self._journal is not None and latest_s - self._kept_s >= _KEPT_EVERY_S:
            self._journal.save_blob(_RECORD, _SECONDS.pack(latest_s))
            self._kept_s = latest_s

    def _moved_on(self, at: tuple[float, float]) -> float:
        time_s, steady_s = at
        return time_s + (self.steady() - steady_s)


def _read(journal: Journal | None) -> float:
    content = journal.load_blob(_RECORD) if journal is not None else None
    if content is None:
        return 0.0
    try:
        (time_s,) = _SECONDS.unpack(content)
    except struct.error as error:
        raise StateError("state-damaged", "The remembered time does not parse.") from error
    return float(time_s)


def _clock_wrong(said_s: float, own_s: float) -> ClockError:
    side = "ahead of" if own_s > said_s else "behind"
    return ClockError(
        "clock-wrong",
        f"This device's clock is {_span(abs(said_s - own_s))} {side} the aggregator's.",
        expected=f"{shown_time(said_s)}, give or take {CLOCK_WRONG_S / 60:.0f} minutes",
        found=shown_time(own_s),
        remedy="Set this device's clock and run again. If it is right, the aggregator's is wrong: "
        "tell its operator.",
    )


def _span(seconds: float) -> str:
    """A length of time as a person says it."""
    for unit, length_s in (("days", 86_400), ("hours", 3_600)):
        if seconds >= 1.5 * length_s:
            return f"{seconds / length_s:.1f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def shown_time(seconds: float) -> str:
    """UTC to the second; the bare number where no calendar has it."""
    try:
        at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, OSError, ValueError):
        return f"{seconds:g}"
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")
