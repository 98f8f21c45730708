"""What a cohort's vectors take in memory: so many bytes a coordinate, whatever the devices."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aggregator.cohorts.adding import Adder, _Job
from aggregator.store.blobs import BlobStore
from dp.encoding import decode
from secagg.ring import lane_dtype, pack, packed_size, payload_length, with_checks
from secagg.unmasking import check_sum
from tests.kits.tasks import built, statistics

LENGTH = 400_000
MANIFEST = built(statistics(("x", LENGTH, 100.0)))
BITS, SLICE = MANIFEST.encoding.ring_bits, MANIFEST.encoding.slice_length
PAYLOAD = payload_length(LENGTH, SLICE)
LANES = PAYLOAD * lane_dtype(BITS).itemsize
PACKED = packed_size(PAYLOAD, BITS)


def peak_of(work: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("devices", [2, 6])
async def test_vectors_of_a_group_are_in_memory_one_after_the_other(
    tmp_path: Path, devices: int
) -> None:
    lanes = with_checks(np.arange(LENGTH, dtype=np.int64) % 7, BITS, SLICE)
    file = tmp_path / "vector"
    file.write_bytes(pack(lanes, BITS))
    core: Any = SimpleNamespace(blobs=BlobStore(tmp_path / "blobs"), pool=ThreadPoolExecutor(1))
    cohort: Any = SimpleNamespace(task=SimpleNamespace(manifest=MANIFEST), id="c" * 64)
    uploads: Any = SimpleNamespace(packed=lambda _: file.read_bytes(), ask=asyncio.to_thread)
    adder = Adder(core, cohort, uploads)
    group = [_Job(index) for index in range(devices)]
    tracemalloc.start()
    summed = await adder._sum_with(group)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summed is not None
    assert summed.jobs == group
    np.testing.assert_array_equal(summed.total, lanes * devices)
    assert peak < 1.05 * (LANES + PACKED) + (4 << 20)  # the sum, one vector, chunks of both
    await adder.close()


async def test_a_vector_that_the_store_is_slow_to_give_holds_up_nobody_elses(
    tmp_path: Path,
) -> None:
    """It comes into a later group."""
    lanes = with_checks(np.arange(LENGTH, dtype=np.int64) % 7, BITS, SLICE)
    packed = memoryview(pack(lanes, BITS))
    given = threading.Event()

    def read(index: int) -> memoryview:
        assert index or given.wait(10.0)
        return packed

    pool = ThreadPoolExecutor(1)
    core: Any = SimpleNamespace(blobs=BlobStore(tmp_path / "blobs"), pool=pool)
    cohort: Any = SimpleNamespace(task=SimpleNamespace(manifest=MANIFEST), id="c" * 64)
    uploads: Any = SimpleNamespace(packed=read, ask=asyncio.to_thread)
    adder = Adder(core, cohort, uploads)
    adder._worker.cancel()
    slow, *others = group = [_Job(index) for index in range(3)]
    summed = await adder._sum_with(group)
    assert summed is not None
    assert summed.jobs == others
    np.testing.assert_array_equal(summed.total, lanes * 2)
    assert slow.late
    assert not slow.done.done()
    given.set()
    again = await asyncio.wait_for(adder._queue.get(), 10.0)
    assert again is slow
    assert not slow.late
    summed = await adder._sum_with([slow])
    assert summed is not None
    assert summed.jobs == [slow]
    await adder.close()


def test_a_sum_is_checked_and_decoded_in_few_bytes_a_coordinate() -> None:
    total = with_checks(np.arange(LENGTH, dtype=np.int64) % 7, BITS, SLICE)
    total[:: SLICE + 1] = 3
    assert peak_of(lambda: check_sum(MANIFEST, total, 3)) < 1 << 16
    peak = peak_of(lambda: decode(MANIFEST, total, survivors=3, rotation_seed=bytes(32)))
    assert peak < LANES + 17 * LENGTH + (1 << 20)  # lanes, then integers and real numbers
