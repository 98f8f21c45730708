"""Slices of a sum as tasks of a Ray cluster.

Ray repeats a task whose worker or machine died. A slice that the cluster cannot compute is computed
here, so no cohort is lost to the cluster: the bits are the same. The same holds where it does not
take the keys of the slices. The cluster is then left alone for some minutes: one that hangs is
waited for at most twice a sum, for the keys and for the slices under way. Mask keys and masked
slices of the sum go to the workers and into Ray's object store in the clear, so the cluster is as
trusted as the service (docs/adr/0042-compute.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from aggregator.compute.opening import Opening, take_off
from aggregator.logs import get_logger
from dp.noise.removable import RemovablePart
from secagg.errors import ConfigurationError
from secagg.masks import MaskTerm
from secagg.ring import Lanes
from secagg.secret import Secret

_log = get_logger("compute")
_RETRIES = 3  # of a task whose worker died
_SLICE_MAX_S = 120.0  # then it is computed here; a slice takes seconds at most
_LEFT_ALONE_S = 300.0  # a cluster that failed
_PER_CPU = 2  # slices under way: one computes while the next one's bytes travel
_STORE_BYTES = 256 << 20  # of a cluster on this machine; slices under way take a few MiB each

# Secrets do not pickle: ring bits, (key, sign) of masks, (key, variance) of noise.
_Plain = tuple[int, tuple[tuple[bytes, int], ...], tuple[tuple[bytes, int], ...]]


class RayPool:
    """``address``: of a cluster that runs, as ``ray.init`` takes it; None: one on this machine,
    with ``workers`` processes, that ends with this service."""

    def __init__(self, address: str | None, workers: int, coordinates: int) -> None:
        """Raises: ConfigurationError ``compute-dependency``."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "compute-dependency",
                f'compute = "ray" needs the package {error.name}, which is not installed.',
                remedy="pip install 'secagg[ray]'",
            ) from error
        self._ray: Any = ray
        self._address = address
        self._workers = workers
        self._coordinates = coordinates
        self._task: Any = None
        # What Ray starts ends with the thread that started it. On the main one Ray would besides
        # take the signal that stops the service.
        self._owner = ThreadPoolExecutor(1, "ray-owner")
        self._waiting: ThreadPoolExecutor | None = None
        self._connected = False  # by this pool: what it began it ends
        self._left_alone_until = -math.inf  # by time.monotonic
        self._here = threading.Semaphore(workers)  # slices that are computed in this process

    async def start(self) -> None:
        """
        Raises:
            ConfigurationError: ``compute-unreachable``.
        """
        await asyncio.get_running_loop().run_in_executor(self._owner, self._connect)

    def _connect(self) -> None:
        options: dict[str, Any] = {"address": self._address}
        if self._address is None:
            options = {
                "address": "local",
                "num_cpus": self._workers,
                "object_store_memory": _STORE_BYTES,
                "include_dashboard": False,
            }
        try:
            if not self._ray.is_initialized():
                self._ray.init(**options, log_to_driver=False, configure_logging=False)
                self._connected = True
            cpus = int(self._ray.cluster_resources().get("CPU", 1))
        except Exception as error:  # of many kinds
            raise ConfigurationError(
                "compute-unreachable",
                f"The Ray cluster did not answer: {type(error).__name__}: {error}.",
                expected=self._address or "a cluster on this machine",
                remedy='Check ray_address and the cluster, or set compute = "local".',
            ) from error
        self._task = self._remote(_on_worker)
        self._waiting = ThreadPoolExecutor(max(1, _PER_CPU * cpus), "ray")

    def _remote(self, function: Callable[[_Plain, Lanes, int], tuple[Lanes, float]]) -> Any:
        return self._ray.remote(num_cpus=1, max_retries=_RETRIES)(function)

    async def take_off(self, opening: Opening, total: Lanes) -> list[float]:
        assert self._waiting is not None  # noqa: S101  started
        loop = asyncio.get_running_loop()
        plain = self._put(opening) if self._may_ask() else None
        return await asyncio.gather(
            *(
                loop.run_in_executor(self._waiting, self._slice, opening, plain, total[lo:hi], lo)
                for lo, hi in opening.cut(len(total), self._coordinates)
            )
        )

    def _may_ask(self) -> bool:
        return time.monotonic() >= self._left_alone_until

    def _put(self, opening: Opening) -> Future[Any]:
        """The keys in the cluster's store, once for all slices. A thread of its own waits for that,
        for which nothing else waits, not even the end of the process."""
        kept: Future[Any] = Future()

        def put() -> None:
            try:
                kept.set_result(self._ray.put(_plain(opening)))
            except Exception as error:  # of many kinds
                kept.set_exception(error)

        threading.Thread(target=put, name="ray-put", daemon=True).start()
        return kept

    def _slice(self, opening: Opening, plain: Future[Any] | None, lanes: Lanes, lo: int) -> float:
        found = None
        if plain is not None and self._may_ask():
            found = self._on_cluster(plain, lanes, lo)
        if found is None:
            with self._here:
                return take_off(opening, lanes, lo)
        np.copyto(lanes, found[0])
        return float(found[1])

    def _on_cluster(self, plain: Future[Any], lanes: Lanes, lo: int) -> tuple[Lanes, float] | None:
        """None: the cluster failed."""
        task = None
        try:
            task = self._task.remote(plain.result(_SLICE_MAX_S), lanes, lo)
            found: tuple[Lanes, float] = self._ray.get(task, timeout=_SLICE_MAX_S)
        except Exception:  # Ray's, of many kinds; what is wrong with the slice shows here again
            self._left_alone_until = time.monotonic() + _LEFT_ALONE_S
            _log.exception("slice-computed-here", first_coordinate=lo, left_alone_s=_LEFT_ALONE_S)
            if task is not None:
                with contextlib.suppress(Exception):
                    self._ray.cancel(task, force=True)
            return None
        return found

    async def close(self) -> None:
        if self._waiting is not None:
            await asyncio.to_thread(self._waiting.shutdown, cancel_futures=True)
        if self._connected:
            await asyncio.get_running_loop().run_in_executor(self._owner, self._ray.shutdown)
        self._owner.shutdown()


def _plain(opening: Opening) -> _Plain:
    return (
        opening.ring_bits,
        tuple((term.key.reveal(), term.sign) for term in opening.terms),
        tuple((part.key.reveal(), part.variance) for part in opening.parts),
    )


def _on_worker(plain: _Plain, lanes: Lanes, lo: int) -> tuple[Lanes, float]:
    """Runs in a worker's process; what Ray hands over is read-only."""
    bits, terms, parts = plain
    opening = Opening(
        bits,
        tuple(MaskTerm(Secret(key), 1 if sign == 1 else -1) for key, sign in terms),
        tuple(RemovablePart(Secret(key), variance) for key, variance in parts),
    )
    opened = lanes.copy()
    return opened, take_off(opening, opened, lo)
