"""What the clock of one replica is told to look at: tasks that may form a cohort, new deadlines."""

from __future__ import annotations

import asyncio


class Wakeups:
    """Written by whoever changes something; read by :class:`aggregator.cohorts.watch.Watch`.

    ``form_at``: task -> Unix seconds at which to look whether it can form a cohort.
    """

    def __init__(self) -> None:
        self.form_at: dict[str, float] = {}
        self._kicked = asyncio.Event()

    def consider(self, task: str) -> None:
        """Look soon whether the task can form a cohort."""
        self.form_at[task] = 0.0
        self._kicked.set()

    def consider_at(self, task: str, at_s: float) -> None:
        """Look at that time, unless somebody has asked for another."""
        self.form_at.setdefault(task, at_s)

    def kick(self) -> None:
        """Look at the clock: there may be an earlier deadline."""
        self._kicked.set()

    def clear(self) -> None:
        self._kicked.clear()

    async def wait(self) -> None:
        """Until the next :meth:`consider` or :meth:`kick` since :meth:`clear`."""
        await self._kicked.wait()
