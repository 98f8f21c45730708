"""Streams, grid, rounding and rotation against their definitions, value by value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.linalg import hadamard

from dp.contracts import BudgetSpec
from dp.noise import grid, quantisation
from dp.noise.quantisation import round_stochastically, squared_norm, to_units
from dp.noise.rotation import blocks, rotate, rotate_back
from dp.noise.stream import BitStream
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.hashing import digest
from tests.kits.said import Case, refused
from tests.kits.tasks import built, seeded, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
KEY = bytes(range(32))


def counter_blocks(first: int, count: int) -> bytes:
    """AES-256 of so many numbers, block by block."""
    cipher = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()  # noqa: S305 - one block
    return b"".join(cipher.update((first + n).to_bytes(16, "big")) for n in range(count))


def test_a_stream_is_the_cipher_of_a_counter_read_little_endian() -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return KEY

    stream = BitStream(random_bytes)
    assert asked == [32]
    plain = counter_blocks(0, 4)
    assert stream.take(5) == plain[:5]
    assert stream.uint64(2).tolist() == [
        int.from_bytes(plain[at : at + 8], "little") for at in (5, 13)
    ]
    assert stream.uint32(3).tolist() == [
        int.from_bytes(plain[at : at + 4], "little") for at in (21, 25, 29)
    ]
    bits = stream.bits(11)
    assert bits.tolist() == [plain[33 + i // 8] >> (7 - i % 8) & 1 for i in range(11)]
    assert stream.take(1) == plain[35:36]  # 11 bits took two bytes
    assert stream.bits(16).tolist() == [plain[36 + i // 8] >> (7 - i % 8) & 1 for i in range(16)]
    assert stream.take(1) == plain[38:39]
    assert BitStream(lambda _: KEY, place=3).take(20) == counter_blocks(3 << 64, 2)[:20]


@pytest.mark.parametrize(
    ("clip", "length", "noisy", "scale"),
    [
        (1.0, 64, True, 1024),  # 16 sqrt(64) = 128 is below the least of 1,024
        (1.0, 4096, True, 1024),
        (1.0, 4097, True, 2048),
        (1.0, 92_160, True, 8192),
        (0.5, 4096, True, 2048),
        (0.3, 64, True, 4096),
        (2000.0, 64, True, 1),
        (1e12, 64, True, 1),
        (1.0, 64, False, 1 << 20),
        (1.0, 1 << 14, False, 1 << 20),
        (1.0, (1 << 14) + 1, False, 1 << 21),
    ],
)
def test_scales_are_the_least_power_of_two_that_serves(
    clip: float, length: int, noisy: bool, scale: int
) -> None:
    assert grid.scale_for(clip, length, noisy=noisy) == scale


def test_the_grid_is_exact_at_its_ends() -> None:
    assert grid.clip_units(1.0, 1) == 1
    assert grid.clip_units(2.0**30, 1) == grid.clip_units(1.0, 1 << 30) == 1 << 30
    assert grid.clip_units(0.1, 10) == 1  # the float 0.1 is a little more than a tenth
    assert grid.clip_units(0.3, 10) == 2  # and 0.3 a little less than three
    smallest = 1024 / 2**52
    assert grid.scale_for(smallest, 1, noisy=True) == 1 << 52
    assert grid.equalised_scales([1.0, 3.0, 0.5], [1, 5000, 9]) == [1132, 378, 2263]
    assert grid.equalised_scales([1e9], [4]) == [1]


def test_an_integer_vector_has_at_most_the_smaller_l1() -> None:
    assert grid.l1_of(3, 4) == 6
    assert grid.l1_of(3, 5) == math.isqrt(44) + 1 == 7
    assert grid.l1_of(2, 100) == 4  # |x|_1 <= |x|_2^2
    assert grid.l1_of(1, 1) == 1
    assert grid.l1_of(1024, 64) == 8192  # a root that is whole is not rounded
    segments = built(
        statistics(("x", 4, 1.0), ("y", 9, 1.0), device_noise_multiplier=1.0, budget=NO_LIMIT)
    ).segments
    a, b = (segment.clip_units for segment in segments)
    assert grid.l2_squared_units(segments) == a * a + b * b
    assert grid.l1_units(segments, 2) == grid.l1_of(2 * a, 4) + grid.l1_of(2 * b, 9)
    assert grid.l1_units(segments) == grid.l1_of(a, 4) + grid.l1_of(b, 9)


def test_which_tasks_have_noise_in_the_ring_and_sum_examples() -> None:
    local = built(algorithm="fedavg", budget=NO_LIMIT)
    device = built(algorithm="fedavg", privacy="none", device_noise_multiplier=1.0, budget=NO_LIMIT)
    none = built(algorithm="fedavg", privacy="none")
    assert [grid.has_ring_noise(m) for m in (built(), local, device, none)] == [
        True,
        False,
        True,
        False,
    ]
    assert [grid.examples_factor(m) for m in (built(), local, device, none)] == [256, 1, 1, 1]


def test_squared_norms_are_exact_or_none() -> None:
    assert squared_norm(np.array([], np.int64)) == 0
    assert squared_norm(np.array([3, -4])) == 25
    assert squared_norm(np.array([2**30 - 1, 1])) == (2**30 - 1) ** 2 + 1
    assert squared_norm(np.array([1 << 31])) is None
    assert squared_norm(np.array([-(1 << 31)])) is None
    assert squared_norm(np.array([(1 << 31) - 1])) is None  # its square is beyond 2^61
    assert squared_norm(np.array([1 << 30, 1 << 30])) is None  # 2^61 itself
    assert squared_norm(np.array([1 << 30, (1 << 30) - 1])) == 2**60 + (2**30 - 1) ** 2
    assert squared_norm(np.array([-(1 << 62), 5])) is None


def test_rounding_compares_each_fraction_with_its_coin() -> None:
    values = np.array([0.25, -0.25, 3.0, -7.5, 1e6 + 0.999] * 30_000)  # more than one block
    stream = BitStream(lambda _: KEY)
    coins = np.concatenate(
        [stream.uint32(min(1 << 16, len(values) - at)) for at in range(0, len(values), 1 << 16)]
    )
    up = coins.astype(np.float64) / 2**32 < values - np.floor(values)
    expected = np.floor(values).astype(np.int64) + up
    assert np.array_equal(round_stochastically(values, BitStream(lambda _: KEY)), expected)
    assert not up[2::5].any()


@pytest.mark.parametrize(
    ("values", "scale", "bound", "length_of"),
    [
        ([3.0, 4.0], 100, 600, 500.0),  # inside: nothing is clipped
        ([3.0, 4.0], 1000, 600, math.sqrt(600**2 - 2 / 4)),  # room for the rounding
        ([3.0, 4.0], 119, 600, 595.0),
        ([1.0] * 64, 1, 2, math.sqrt(2.0)),  # never more than half is left for it
    ],
)
def test_a_clipped_vector_keeps_its_direction_and_leaves_room_for_rounding(
    values: list[float], scale: int, bound: int, length_of: float
) -> None:
    vector = np.array(values)
    exact = vector / np.linalg.norm(vector) * length_of
    found = [to_units(vector, scale, bound, seeded(n)) for n in range(400)]
    for units in found:
        assert int(units @ units) <= bound * bound
    mean = np.mean(found, axis=0)
    if length_of > 100:
        assert max(np.abs(units - exact).max() for units in found) < 1
        assert np.abs(mean - exact).max() < 0.12
    else:
        assert float(mean @ vector) / 8 < 2 * length_of


def test_a_vector_of_zeros_asks_for_no_coins() -> None:
    def none(_: int) -> bytes:
        raise AssertionError

    assert not to_units(np.zeros(4), 5, 7, none).any()
    assert len(to_units(np.zeros(0), 5, 7, none)) == 0
    assert to_units(np.array([1e-300]), 1, 1, seeded()).tolist() == [0]


def test_a_unit_that_no_rounding_reaches_becomes_zero_in_the_end() -> None:
    """Of 64 halves few roundings have norm 1: they are shrunk until one has."""
    units = to_units(np.full(64, 0.5), 1, 1, seeded())
    assert int(units @ units) <= 1
    assert quantisation._TRIES_MAX > quantisation._TRIES_SLOW


def test_rotation_is_signs_and_hadamard_matrices_block_by_block() -> None:
    assert blocks(92_160) == [65_536, 16_384, 8_192, 2_048]
    assert blocks(7) == [4, 2, 1]
    assert blocks(1) == [1]
    length = 512 + 128 + 4 + 1
    values = np.random.default_rng(1).normal(size=length)
    key = digest("rotation", b"seed", b"x")
    signs = 1.0 - 2.0 * BitStream(lambda _: key).bits(length)
    expected, at = [], 0
    for size in (512, 128, 4, 1):
        block = (values * signs)[at : at + size]
        expected.append(hadamard(size) @ block / math.sqrt(size))
        at += size
    found = rotate(values, b"seed", "x")
    assert np.allclose(found, np.concatenate(expected), rtol=0, atol=1e-12)
    assert np.allclose(rotate_back(found, b"seed", "x"), values, rtol=0, atol=1e-12)


def test_a_block_of_three_factors_is_transformed_as_one() -> None:
    """2^15 = 128 * 128 * 2: the middle factor has numbers before and after it."""
    spike = np.zeros(1 << 15)
    place = 0b101_1001101_0110011 & 0x7FFF
    spike[place] = 1.0
    key = digest("rotation", b"s", b"x")
    sign = 1.0 - 2.0 * float(BitStream(lambda _: key).bits(1 << 15)[place])
    parity = np.array([(place & k).bit_count() & 1 for k in range(1 << 15)])
    assert np.allclose(rotate(spike, b"s", "x"), sign * (1 - 2 * parity) * 2**-7.5, atol=1e-15)


def test_a_coin_that_equals_the_fraction_rounds_down() -> None:
    coins = BitStream(lambda _: KEY).uint32(9).astype(np.float64) / 2**32
    found = round_stochastically(coins, BitStream(lambda _: KEY))
    assert found.tolist() == [0] * 9
    assert found.dtype == np.int64
    above = round_stochastically(coins + 2.0**-31, BitStream(lambda _: KEY))
    assert above.tolist() == [1] * 9


def test_without_a_try_that_fits_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "_TRIES_MAX", 0)
    found = to_units(np.ones(3), 1, 5, seeded())
    assert (found.tolist(), found.dtype) == ([0, 0, 0], np.int64)
    with pytest.raises(LocalProtocolError, match="clip-out-of-range"):
        to_units(np.ones(3), 1, (1 << 30) + 1, seeded())


def rounded_and_clipped(values: np.ndarray, scale: int, bound: int) -> tuple[np.ndarray, int]:
    """The documented steps, one after the other, and how many tries they took."""
    wide = values.astype(np.float64)
    norm = float(np.sqrt((wide**2).sum()))
    target = math.sqrt(max(bound**2 - len(wide) / 4, bound**2 / 2))
    units = wide * scale if norm * scale <= target else wide / norm * target
    stream, tries = BitStream(lambda _: KEY), 0
    while True:
        tries += 1
        if tries > 2:
            units = units * (0.999 if tries <= 64 else 0.9)
        result = np.floor(units) + (stream.uint32(len(units)) / 2**32 < units - np.floor(units))
        if (result**2).sum() <= bound**2:
            return result.astype(np.int64), tries


@pytest.mark.parametrize(
    ("values", "scale", "bound", "tries"),
    [
        (np.linspace(-1.0, 1.0, 40), 30, 200, range(1, 2)),
        (np.linspace(-1.0, 1.0, 40), 1000, 50, range(1, 20)),
        (np.linspace(-1.0, 1.0, 40).astype(np.float32), 1 << 20, 1 << 25, range(1, 2)),
        (np.ones(64), 1, 2, range(3, 65)),
        (np.ones(4096), 1, 2, range(65, 200)),
        (np.array([2.0]), 1 << 29, 1 << 30, range(1, 2)),
    ],
)
def test_a_clipped_vector_is_made_by_the_documented_steps(
    values: np.ndarray, scale: int, bound: int, tries: range
) -> None:
    expected, taken = rounded_and_clipped(values, scale, bound)
    assert taken in tries
    assert np.array_equal(to_units(values, scale, bound, lambda _: KEY), expected)


REFUSED = {
    "a clip of zero": Case(lambda: grid.clip_units(0.0, 1), "clip-out-of-range", "> 0", 0.0),
    "a clip without end": Case(
        lambda: grid.scale_for(math.inf, 1, noisy=True), "clip-out-of-range", "> 0", math.inf
    ),
    "a clip below one unit": Case(
        lambda: grid.clip_units(0.5, 1), "clip-out-of-range", "1 to 1073741824 units", 0
    ),
    "a clip beyond the grid": Case(
        lambda: grid.clip_units(2.0**30 + 1, 1),
        "clip-out-of-range",
        "1 to 1073741824 units",
        2**30 + 1,
    ),
    "a clip that no scale serves": Case(
        lambda: grid.scale_for(1e-13, 1, noisy=True),
        "clip-out-of-range",
        "at least 2.27e-13",
        1e-13,
    ),
    "an integer clip of zero": Case(
        lambda: quantisation.to_units(np.ones(3), 1, 0, seeded()),
        "clip-out-of-range",
        None,
        0,
        error=LocalProtocolError,
    ),
    "values that are none": Case(
        lambda: quantisation.to_units(np.array([1, math.nan]), 1, 5, seeded()),
        "values-not-finite",
        error=LocalProtocolError,
    ),
    "too little randomness": Case(
        lambda: BitStream(lambda _: bytes(31)), "random-bytes", 32, 31, error=LocalProtocolError
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], ConfigurationError)
