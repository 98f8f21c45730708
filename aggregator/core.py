"""What every part of one replica shares."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from aggregator.compute.pools import Pool
from aggregator.keys import Keys
from aggregator.metrics import Metrics
from aggregator.pseudonyms import Pseudonyms
from aggregator.settings.options import Settings
from aggregator.signals import Signals
from aggregator.store.blobs import Blobs
from aggregator.store.database import Database


@dataclass
class Core:
    """``replica`` names this data folder, so that a restart takes its own leases up again.
    ``pool`` runs what would block the event loop: vectors, the machine's cryptography.
    ``compute`` opens sums.
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
    started_at: float = field(init=False)  # Unix seconds
    pseudonyms: Pseudonyms = field(init=False)

    def __post_init__(self) -> None:
        self.pseudonyms = Pseudonyms(self.keys.task, self.clock)
        self.started_at = self.clock()
