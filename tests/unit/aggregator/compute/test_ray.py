"""Sums opened on a Ray cluster of two workers on this machine; one cluster for all tests."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aggregator.compute import ray_pool
from aggregator.compute.opening import Opening, take_off
from aggregator.compute.ray_pool import RayPool
from dp.contracts import SegmentSpec
from dp.noise.removable import RemovablePart
from secagg.errors import ConfigurationError
from secagg.masks import MaskTerm
from secagg.ring import lane_dtype
from secagg.secret import Secret
from tests.kits.service import current_sum, devices, finished, run, served, spec

BITS, LENGTH, COORDINATES = 24, 300_000, 1 << 16


@pytest.fixture(scope="module")
def pool() -> Iterator[RayPool]:
    made = RayPool(None, 2, COORDINATES)
    asyncio.run(made.start())
    yield made
    asyncio.run(made.close())


def opening(*, noise: bool = False) -> Opening:
    terms = tuple(
        MaskTerm(Secret(bytes([number]) * 32), 1 if number % 2 else -1) for number in range(3)
    )
    parts = tuple(RemovablePart(Secret(bytes([number]) * 32), 900) for number in (7, 8))
    return Opening(BITS, terms, parts if noise else ())


def masked() -> np.ndarray:
    lanes = np.random.default_rng(5).integers(0, 1 << BITS, LENGTH, dtype=np.uint32)
    return lanes.astype(lane_dtype(BITS))


def here(work: Opening) -> tuple[np.ndarray, float]:
    total = masked()
    products = [take_off(work, total[lo:hi], lo) for lo, hi in work.cut(LENGTH, COORDINATES)]
    return total, sum(products)


async def demand_same(pool: RayPool, work: Opening) -> None:
    total = masked()
    products = await pool.take_off(work, total)
    expected, product = here(work)
    np.testing.assert_array_equal(total, expected)
    assert sum(products) == product


@pytest.mark.parametrize("noise", [False, True])
async def test_the_cluster_gives_the_same_bits(
    pool: RayPool, noise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "take_off", None)  # nothing is computed in this process
    await demand_same(pool, opening(noise=noise))


async def test_a_slice_whose_worker_is_killed_is_computed_by_another(
    pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, died = ray_pool._on_worker, tmp_path / "died"

    def dies_once(plain, lanes, lo):
        if lo == COORDINATES and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(plain, lanes, lo)

    monkeypatch.setattr(pool, "_task", pool._remote(dies_once))
    monkeypatch.setattr(ray_pool, "take_off", None)
    await demand_same(pool, opening())
    assert died.exists()


async def test_what_the_cluster_cannot_compute_is_computed_here(
    pool: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(plain, lanes, lo):
        raise MemoryError

    monkeypatch.setattr(pool, "_task", pool._remote(fails))
    monkeypatch.setattr(pool, "_left_alone_until", pool._left_alone_until)  # for the next test
    computed = []

    def take_off_here(work, lanes, lo):
        computed.append(lo)
        return take_off(work, lanes, lo)

    monkeypatch.setattr(ray_pool, "take_off", take_off_here)
    await demand_same(pool, opening())
    assert sorted(computed) == list(range(0, LENGTH, COORDINATES))


async def test_a_cluster_that_hangs_is_waited_for_once_and_left_alone_for_some_minutes() -> None:
    waits: list[float] = []
    cancelled: list[object] = []

    def hangs(task: object, timeout: float) -> object:
        waits.append(timeout)
        raise TimeoutError

    hung = RayPool(None, 2, COORDINATES)
    hung._ray = SimpleNamespace(
        put=lambda plain: plain, get=hangs, cancel=lambda task, force: cancelled.append(task)
    )
    hung._task = SimpleNamespace(remote=lambda *_: "task")
    hung._waiting = ThreadPoolExecutor(1)
    await demand_same(hung, opening(noise=True))
    assert len(waits) == 1
    assert cancelled == ["task"]
    await demand_same(hung, opening())
    assert len(waits) == 1
    hung._left_alone_until -= ray_pool._LEFT_ALONE_S
    await demand_same(hung, opening())
    assert len(waits) == 2
    await hung.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_keys_that_the_cluster_does_not_take_cost_no_sum(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its raylet is dead, its store full, or it hangs; it is not asked again for some minutes."""
    asked, over = [], threading.Event()

    def put(_: object) -> object:
        asked.append(hangs)
        if hangs:
            over.wait(20.0)
        raise ConnectionError("the raylet has died")

    monkeypatch.setattr(ray_pool, "_SLICE_MAX_S", 0.05)
    dead = RayPool(None, 2, COORDINATES)
    dead._ray = SimpleNamespace(put=put)
    dead._task = SimpleNamespace(remote=lambda *_: "task")
    dead._waiting = ThreadPoolExecutor(1)
    await asyncio.wait_for(demand_same(dead, opening(noise=True)), 10.0)
    await asyncio.wait_for(demand_same(dead, opening()), 10.0)
    assert len(asked) == 1
    over.set()
    await dead.close()


async def test_a_stop_waits_for_slices_beside_the_event_loop() -> None:
    pool = RayPool(None, 2, COORDINATES)
    pool._waiting = ThreadPoolExecutor(1)
    told = threading.Event()
    under_way = pool._waiting.submit(told.wait, 10.0)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(told.set)  # which a loop that waits never comes to
    await asyncio.wait_for(closing, 10.0)
    assert under_way.result() is True


async def test_a_service_releases_a_sum_that_the_cluster_opened(
    pool: RayPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "take_off", None)
    task = spec(segments=(SegmentSpec(name="count", length=COORDINATES + 40, clip=1e4),))
    async with served(tmp_path, task, compute="ray", opening_slice=COORDINATES) as server:
        fleet = devices(server, 4)
        for device in fleet:
            device.value = np.ones(COORDINATES + 40)
        assert finished(await run(fleet)) == 4
        np.testing.assert_allclose(await current_sum(server), 4.0, atol=0.1)


async def test_a_cluster_that_does_not_answer_is_refused(
    pool: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(**_):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(pool._ray, "is_initialized", lambda: False)
    monkeypatch.setattr(pool._ray, "init", nobody)
    away = RayPool("127.0.0.1:1", 2, COORDINATES)
    with pytest.raises(ConfigurationError) as refused:
        await away.start()
    assert refused.value.reason == "compute-unreachable"
    assert refused.value.expected == "127.0.0.1:1"
