"""How many lines the same failure may take: a few in each stretch of time, then a count."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

WINDOW_S = 60.0
SAME_MAX = 5  # lines of the same failure in a window
ALL_MAX = 300  # lines of all kinds together in a window
_KINDS_MAX = 1_000  # that are told apart in a window
_LOOK_S = 1.0  # between looks for windows that have ended

_Kind = TypeVar("_Kind", bound=Hashable)


@dataclass
class _Count:
    since: float
    written: int = 0
    left_out: int = 0


@dataclass(frozen=True)
class LeftOut(Generic[_Kind]):
    """``count`` lines of a kind were not written within ``seconds``; kind None: of any."""

    kind: _Kind | None
    count: int
    seconds: float


class Repeats(Generic[_Kind]):
    """Counts lines by kind. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        self._counts: dict[_Kind, _Count] = {}
        self._all = _Count(float("-inf"))
        self._looked_at = float("-inf")
        self._lock = threading.Lock()

    def admit(self, kind: _Kind, now: float) -> tuple[bool, list[LeftOut[_Kind]]]:
        """Whether a line of this kind is written, and what was left out in windows that ended."""
        with self._lock:
            ended = self._ended(now)
            count = self._counts.get(kind)
            if count is None:
                count = _Count(now)
                if len(self._counts) < _KINDS_MAX:
                    self._counts[kind] = count
            if count.written >= SAME_MAX:
                count.left_out += 1
                return False, ended
            if self._all.written >= ALL_MAX:
                self._all.left_out += 1
                return False, ended
            count.written += 1
            self._all.written += 1
            return True, ended

    def rest(self, now: float) -> list[LeftOut[_Kind]]:
        """What was left out and not told yet; begins anew."""
        with self._lock:
            return self._ended(now, WINDOW_S)

    def _ended(self, now: float, ahead_s: float = 0.0) -> list[LeftOut[_Kind]]:
        ended: list[LeftOut[_Kind]] = []
        if now + ahead_s - self._looked_at < _LOOK_S:
            return ended
        self._looked_at = now
        for kind, count in tuple(self._counts.items()):
            if now + ahead_s - count.since >= WINDOW_S:
                del self._counts[kind]
                if count.left_out:
                    ended.append(LeftOut(kind, count.left_out, now - count.since))
        if now + ahead_s - self._all.since >= WINDOW_S:
            if self._all.left_out:
                ended.append(LeftOut(None, self._all.left_out, now - self._all.since))
            self._all = _Count(now)
        return ended
