"""Wake-ups for long polls and workers inside one process.

A signal carries no data: whoever wakes reads the database. Commits of other replicas arrive
through the poller (``aggregator.cohorts.watch``), which sets the same signals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """Named one-shot events, kept only while somebody listens."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Event]] = {}

    def notify(self, *names: str) -> None:
        for name in names:
            for event in self._listeners.get(name, ()):
                event.set()

    def notify_all(self) -> None:
        self.notify(*self._listeners)

    @contextmanager
    def listen(self, name: str) -> Iterator[asyncio.Event]:
        """An event that the next :meth:`notify` sets. Take it *before* reading the database."""
        event = asyncio.Event()
        self._listeners.setdefault(name, set()).add(event)
        try:
            yield event
        finally:
            listeners = self._listeners[name]
            listeners.discard(event)
            if not listeners:
                del self._listeners[name]
