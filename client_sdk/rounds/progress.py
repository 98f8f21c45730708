"""How far training, an upload or a download is, for the app: an event now and then."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from client_sdk.rounds.device import RunningDevice
from client_sdk.threads import beside

_T = TypeVar("_T")
EVERY_S = 1.0  # one event in so many seconds at most


class Progress:
    """Events ``progress`` of one piece of work."""

    def __init__(
        self,
        device: RunningDevice,
        what: Literal["training", "download", "upload"],
        task: str,
        session: str | None = None,
    ) -> None:
        self._device = device
        self._what = what
        self._task = task
        self._session = session
        self._first: tuple[int, float] | None = None  # done, and when
        self._latest: tuple[int, int] | None = None  # done, and of how much
        self._told: tuple[int, int] | None = None

    def note(self, done: int, total: int) -> None:
        """``done`` of ``total`` is done. From any thread, as often as one likes."""
        if self._first is None:
            self._first = (done, self._device.time.steady())
        self._latest = (done, total)

    async def during(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of ``work``; the app hears meanwhile what was noted last.

        It hears the end too, if it has heard of a beginning.
        """
        result = await beside(work, self._tell_on())
        if self._told is not None:
            await self._tell()
        return result

    async def _tell_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            await self._tell()

    async def _tell(self) -> None:
        latest = self._latest
        if latest is None or latest == self._told:
            return
        self._told = latest
        done, total = latest
        await self._device.emit(
            "progress",
            self._task,
            self._session,
            what=self._what,
            done=done,
            total=total,
            seconds_left=self._seconds_left(done, total),
        )

    def _seconds_left(self, done: int, total: int) -> float | None:
        """At the pace since the first note; None before there is one."""
        assert self._first is not None  # noqa: S101  noted before the latest
        before, since_s = self._first
        spent_s = self._device.time.steady() - since_s
        if done <= before or spent_s <= 0:
            return None
        return round((total - done) * spent_s / (done - before), 1)
