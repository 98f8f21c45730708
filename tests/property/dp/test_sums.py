"""Sums of encodings decode to the sum of the inputs, within rounding and the known noise."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dp.contracts import BudgetSpec
from dp.encoding import decode, encode
from dp.example_sum import ExampleSum
from dp.noise.sampling import tail_bound
from secagg.manifest import Manifest
from secagg.ring import add_into
from tests.kits.tasks import adapter, built, seeded, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
PLAIN = built(statistics(("x", 37, 3.0), ("count", 1, 100.0)))
DEVICE = built(statistics(("x", 37, 3.0), device_noise_multiplier=0.5, budget=NO_LIMIT))
EXAMPLE = built(adapter=adapter((5, 4)), budget=NO_LIMIT)


def total_of(manifest: Manifest, values: list[dict[str, Any]], seed: int) -> dict[str, np.ndarray]:
    total = None
    for device, value in enumerate(values):
        payload = encode(
            manifest, value, rotation_seed=b"ctx", random_bytes=seeded(seed * 1000 + device)
        )
        if total is None:
            total = payload
        else:
            add_into(total, payload, manifest.encoding.ring_bits)
    return decode(manifest, total, survivors=len(values), rotation_seed=b"ctx")


def clipped(vector: np.ndarray, clip: float) -> np.ndarray:
    norm = np.linalg.norm(vector)
    return vector * min(1.0, clip / norm) if norm > 0 else vector


vectors = hnp.arrays(np.float64, 37, elements=st.floats(-10, 10, width=32))


@given(st.lists(vectors, min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_without_noise(inputs: list[np.ndarray], seed: int) -> None:
    values = [{"x": v, "count": np.array([float(i)])} for i, v in enumerate(inputs)]
    found = total_of(PLAIN, values, seed)
    scale = PLAIN.segments[0].scale
    error = found["x"] - sum(clipped(v, 3.0) for v in inputs)
    # Rounding moves a coordinate by less than a unit; the integer clip shrinks by under 0.3 %.
    assert np.abs(error).max() <= len(inputs) * (1 / scale + 3.0 * 0.003)
    assert found["count"][0] == sum(range(len(inputs)))


@given(st.lists(vectors, min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_with_device_level_noise(inputs: list[np.ndarray], seed: int) -> None:
    found = total_of(DEVICE, [{"x": v} for v in inputs], seed)
    scale, count = DEVICE.segments[0].scale, len(inputs)
    # All coordinates of the noise at once stay below this but for a chance of 2^-40.
    noise = tail_bound(DEVICE.noise.share_variance * count, -46.0) / scale * 37**0.5
    error = found["x"] - sum(clipped(v, 3.0) for v in inputs)
    assert np.linalg.norm(error) <= noise + count * (37**0.5 / scale + 3.0 * 0.01)


@given(
    st.lists(
        st.lists(hnp.arrays(np.float32, 36, elements=st.floats(-4, 4, width=32)), max_size=4),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_distributed_sum_is_the_exact_integer_sum_plus_noise(
    devices: list[list[np.ndarray]], seed: int
) -> None:
    sums = []
    for device, gradients in enumerate(devices):
        batch = ExampleSum(EXAMPLE, seeded(seed + 7 * device))
        for gradient in gradients:
            batch.add(gradient)
        sums.append(batch.total)
    segment, noise = EXAMPLE.segments[0], EXAMPLE.noise
    found = total_of(EXAMPLE, [{"gradient": total} for total in sums], seed)["gradient"]
    units = np.rint(found * segment.scale).astype(np.int64)
    assert np.array_equal(units / segment.scale, found)
    assert np.abs(units - sum(sums)).max() <= tail_bound(noise.share_variance * len(sums), -46.0)
    # The very same coins give the very same integers: the sum is exact in the ring.
    louder = [total + 5 for total in sums]
    again = total_of(EXAMPLE, [{"gradient": total} for total in louder], seed)["gradient"]
    assert np.array_equal(
        np.rint(again * segment.scale).astype(np.int64) - units, [5 * len(sums)] * 36
    )


def test_the_properties_cover_three_modes() -> None:
    assert PLAIN.noise is None
    assert DEVICE.device_privacy is not None
    assert EXAMPLE.example_privacy.mode == "distributed"
    assert msgspec.structs.asdict(EXAMPLE.noise)["mechanism"] == "skellam"
