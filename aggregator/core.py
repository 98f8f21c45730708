"""What every part of one replica shares."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from aggregator.compute.pools import Pool
from aggregator.keys import Keys
from aggregator.metrics import Metrics
from aggregator.pseudonyms import Pseudonyms
from aggregator.settings.options import Settings
from aggregator.signals import Signals
from aggregator.store.blobs import Blobs
from aggregator.store.database import Database

_T = TypeVar("_T")
_BLOB_THREADS = 32  # they wait for a disk or a network, and compute nothing


@dataclass
class Core:
    """``replica`` names this data folder, so that a restart takes its own leases up again.
    ``pool`` runs what would block the event loop: vectors, the machine's cryptography.
    ``compute`` opens sums. ``blob_pool`` waits for the blob store, so that nothing else waits with
    it, except for models at a release and deltas: they are read where they are computed.
    ``blob_store``: what the store's own blob says of it, since the start.
    """

    settings: Settings
    keys: Keys
    database: Database
    blobs: Blobs
    clock: Callable[[], float]
    pool: ThreadPoolExecutor
    compute: Pool
    replica: str
    signals: Signals = field(default_factory=Signals)
    metrics: Metrics = field(default_factory=Metrics)
    blob_pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_BLOB_THREADS, "blobs")
    )
    blob_store: str | None = None
    started_at: float = field(init=False)  # Unix seconds
    pseudonyms: Pseudonyms = field(init=False)

    def __post_init__(self) -> None:
        self.pseudonyms = Pseudonyms(self.keys.task, self.clock)
        self.started_at = self.clock()

    async def ask_blobs(self, function: Callable[..., _T], /, *arguments: object) -> _T:
        """What a call that asks the blob store returns. It runs in a thread of the store's own."""
        call = functools.partial(contextvars.copy_context().run, function, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self.blob_pool, call)
