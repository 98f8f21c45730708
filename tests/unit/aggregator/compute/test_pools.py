"""Every pool takes off exactly what one thread takes off the whole sum."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from aggregator.compute.opening import Opening, take_off
from aggregator.compute.pools import LocalPool, Pool, compute_pool
from aggregator.settings.options import Settings
from dp.noise.removable import RemovablePart, remove_parts
from secagg.errors import ConfigurationError
from secagg.limits import SLICE_LENGTH
from secagg.masks import MaskTerm
from secagg.ring import lane_dtype
from secagg.secret import Secret
from secagg.unmasking import UnmaskingPlan, unmask_slice

BITS = 24
LENGTH = 3 * (SLICE_LENGTH + 1) - 7


@pytest.fixture(scope="module")
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def opening(*, noise: bool) -> Opening:
    terms = tuple(
        MaskTerm(Secret(bytes([number]) * 32), 1 if number % 2 else -1) for number in range(3)
    )
    parts = tuple(RemovablePart(Secret(bytes([number]) * 32), 900) for number in (7, 8))
    return Opening(BITS, terms, parts if noise else ())


def masked() -> np.ndarray:
    lanes = np.random.default_rng(5).integers(0, 1 << BITS, LENGTH, dtype=np.uint32)
    return lanes.astype(lane_dtype(BITS))


def at_one_go(work: Opening) -> tuple[np.ndarray, float]:
    """By the core's own functions, over the whole sum."""
    total = masked()
    unmask_slice(UnmaskingPlan(BITS, LENGTH, work.terms), total, 0, LENGTH)
    return total, remove_parts(total, work.parts, BITS, 0, LENGTH)


async def demand_same(pool: Pool, work: Opening) -> None:
    expected, product = at_one_go(work)
    total = masked()
    products = await pool.take_off(work, total)
    np.testing.assert_array_equal(total, expected)
    assert sum(products) == product


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("coordinates", [1_001, 1 << 18])
async def test_threads_take_off_what_one_does(
    threads: ThreadPoolExecutor, noise: bool, coordinates: int
) -> None:
    await demand_same(LocalPool(threads, coordinates), opening(noise=noise))


def test_a_slice_of_noise_is_drawn_at_its_own_place() -> None:
    work, stride = opening(noise=True), SLICE_LENGTH + 1
    lanes = masked()[stride : 2 * stride].copy()
    take_off(work, lanes, stride)
    np.testing.assert_array_equal(lanes, at_one_go(work)[0][stride : 2 * stride])


def test_without_ray_the_service_says_how_to_install_it(
    tmp_path: Path, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = Settings.load(data_dir=tmp_path, compute="ray")
    with pytest.raises(ConfigurationError, match=r"package ray") as refused:
        compute_pool(settings, threads)
    assert refused.value.reason == "compute-dependency"
    assert refused.value.remedy == "pip install 'secagg[ray]'"


def test_threads_are_the_default(tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    assert isinstance(compute_pool(Settings.load(data_dir=tmp_path), threads), LocalPool)
