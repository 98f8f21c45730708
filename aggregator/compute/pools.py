"""The pools that open sums: threads of this process by default."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Protocol

from aggregator.compute.opening import Opening, take_off
from aggregator.settings.options import Settings
from secagg.ring import Lanes


class Pool(Protocol):
    """Opens sums slice by slice. :meth:`start` comes first, :meth:`close` last."""

    async def start(self) -> None: ...

    async def take_off(self, opening: Opening, total: Lanes) -> list[float]:
        """Take masks and noise off ``total``, the whole payload, in place.

        Returns:
            The scalar product of each slice, in order, as
            :func:`aggregator.compute.opening.take_off`.
        """
        ...

    async def close(self) -> None: ...


class LocalPool:
    """Threads of this process. Key stream and additions release the interpreter lock, and slices
    of one array are disjoint, so threads need no locks."""

    def __init__(self, threads: Executor, coordinates: int) -> None:
        self._threads = threads
        self._coordinates = coordinates

    async def start(self) -> None:
        pass

    async def take_off(self, opening: Opening, total: Lanes) -> list[float]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, take_off, opening, total[lo:hi], lo)
                for lo, hi in opening.cut(len(total), self._coordinates)
            )
        )

    async def close(self) -> None:
        pass


def compute_pool(settings: Settings, threads: Executor) -> Pool:
    """The pool that the settings choose.

    Raises:
        ConfigurationError: ``compute-dependency``.
    """
    if settings.compute == "local":
        return LocalPool(threads, settings.opening_slice)
    from aggregator.compute.ray_pool import RayPool

    return RayPool(settings.ray_address, settings.opening_threads, settings.opening_slice)
