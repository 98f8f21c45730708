"""What the app wants of a run under way: that it stops, pauses, or trains under conditions only.

Wishes come from any thread and are looked at in the event loop. Work that may end at any moment
runs in :meth:`Steering.free`; a cohort that this device has joined ends by
:mod:`client_sdk.rounds.exchange`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar

from client_sdk.errors import PolicyRefusal
from client_sdk.threads import beside

_T = TypeVar("_T")
WATCH_S = 0.1  # between two looks at what the app wants
CONDITIONS_S = 1.0  # between two questions to its conditions


class StopSignal(Protocol):
    """Says whether a run is to stop, from any thread: a ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """Whether it is; called in the event loop's thread, about ten times a second."""
        ...


class Interrupted(Exception):
    """The app wants the run to stop or to pause, or a condition of its policy does not hold.

    ``reason``: ``stopped``, ``paused``, or that of the ``refusal``.
    """

    def __init__(self, reason: str, refusal: PolicyRefusal | None = None) -> None:
        self.reason = reason
        self.refusal = refusal
        super().__init__(str(refusal) if refusal else f"The app has {reason} this device's run.")


def _always() -> None:
    """Where the app has no conditions."""


class Steering:
    """One run's look at what the app wants."""

    def __init__(
        self,
        stop: StopSignal | None = None,
        pause: threading.Event | None = None,
        demand_now: Callable[[], None] = _always,
    ) -> None:
        """``demand_now``: :meth:`client_sdk.policy.PrivacyPolicy.demand_now`."""
        self._stop = stop
        self._pause = pause or threading.Event()
        self._demand_now = demand_now
        self._woken = asyncio.Event()

    def look(self) -> None:
        """Look at once: the app was asked, and may have said what it wants."""
        self._woken.set()

    @property
    def stopped(self) -> bool:
        return self._stop is not None and self._stop.is_set()

    @property
    def wished(self) -> bool:
        """Whether the app wants the run to stop or to pause."""
        return self.stopped or self._pause.is_set()

    def demand(self) -> None:
        """Return if the app wants the run to go on.

        Raises:
            Interrupted
        """
        if self.stopped:
            raise Interrupted("stopped")
        if self._pause.is_set():
            raise Interrupted("paused")

    async def free(self, work: Coroutine[Any, Any, _T], *, conditions: bool = False) -> _T:
        """The result of ``work``, which ends where it is once the app wants the run to.

        Args:
            conditions: whether those of the app's policy are asked too.

        Raises:
            Interrupted: the app stops or pauses the run.
            PolicyRefusal: ``not-now``.
        """
        try:
            self.demand()
        except Interrupted:
            work.close()
            raise
        try:
            return await beside(work, self.watch(lambda: True, conditions=conditions))
        except Interrupted as wish:
            if wish.refusal is not None:
                raise wish.refusal from None
            raise

    async def watch(self, holds: Callable[[], bool], *, conditions: bool) -> None:
        """Look at what the app wants, for ever; while ``holds`` says so, what it wants is raised.

        Raises:
            Interrupted, also with a refusal; and what ``holds`` raises.
        """
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        while True:
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._woken.wait()
            if not holds():
                continue
            self.demand()
            if conditions and loop.time() - asked_s >= CONDITIONS_S:
                try:
                    self._demand_now()
                except PolicyRefusal as refusal:
                    raise Interrupted(refusal.reason, refusal) from None
                asked_s = loop.time()

    async def through(
        self,
        work: Callable[[], Awaitable[_T]],
        tell: Callable[[Literal["paused", "continued"]], Awaitable[None]],
    ) -> _T:
        """The result of ``work``, which is begun anew after each pause.

        Args:
            tell: awaited with ``paused`` when it rests and with ``continued`` when it goes on.

        Raises:
            Interrupted: ``stopped``.
        """
        while True:
            try:
                self.demand()
                return await work()
            except Interrupted as wish:
                if wish.reason != "paused":
                    raise
            await tell("paused")
            while self._pause.is_set() and not self.stopped:  # noqa: ASYNC110  set by threads
                await asyncio.sleep(WATCH_S)
            if not self.stopped:
                await tell("continued")
