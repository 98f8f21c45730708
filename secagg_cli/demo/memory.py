"""Peak memory of a group of processes: their proportional set sizes, summed (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType


class MemoryMeter:
    """Samples while its context is open; ``peak_bytes`` is None where there is no ``smaps_rollup``.

    PSS counts a page that k processes map as 1/k in each, so the sum is what the group really
    takes, with the mapped model weights counted once.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], interval_s: float = 1.0) -> None:
        self.peak_bytes: int | None = None
        self._pids = pids
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self.sample()

    def sample(self) -> None:
        sizes = [size for pid in (os.getpid(), *self._pids()) if (size := pss_bytes(pid))]
        if sizes:
            self.peak_bytes = max(self.peak_bytes or 0, sum(sizes))

    def __enter__(self) -> MemoryMeter:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()


def pss_bytes(pid: int) -> int | None:
    """One process's proportional set size; None if it is gone or the system does not say."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
