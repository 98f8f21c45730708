"""The public rotation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import hadamard

from dp.noise.rotation import blocks, rotate, rotate_back


def test_blocks_are_powers_of_two_without_padding() -> None:
    assert blocks(92_160) == [65_536, 16_384, 8_192, 2_048]
    assert blocks(1) == [1]
    for length in (3, 7, 1000, 184_320):
        parts = blocks(length)
        assert sum(parts) == length
        assert all(part & (part - 1) == 0 for part in parts)


@pytest.mark.parametrize("length", [1, 2, 5, 64, 1000, 92_160, 1 << 15])
def test_rotation_keeps_the_norm_and_is_undone(length: int) -> None:
    values = np.random.default_rng(length).normal(size=length)
    rotated = rotate(values, b"seed", "x")
    assert np.linalg.norm(rotated) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    assert np.allclose(rotate_back(rotated, b"seed", "x"), values, atol=1e-12)


@pytest.mark.parametrize("log2", [3, 8, 15])
def test_transform_is_walsh_hadamard(log2: int) -> None:
    size = 1 << log2
    unit = np.zeros(size)
    unit[5] = 1.0
    rotated = rotate(unit, b"seed", "x")
    column = hadamard(min(size, 512))[5] if size <= 512 else None
    assert np.allclose(np.abs(rotated), size**-0.5)
    if column is not None:
        assert np.allclose(np.abs(rotated @ (column / size**0.5)), 1.0)


def test_rotation_is_linear_so_sums_can_be_rotated_back() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 300))
    assert np.allclose(rotate(a, b"s", "x") + rotate(b, b"s", "x"), rotate(a + b, b"s", "x"))


def test_seed_and_segment_change_the_signs() -> None:
    values = np.ones(256)
    base = rotate(values, b"seed", "x")
    assert not np.allclose(base, rotate(values, b"other", "x"))
    assert not np.allclose(base, rotate(values, b"seed", "y"))
