"""Whatever the clip and the vectors are, no unit moves the sum beyond the manifest's bounds.

So a server that lies about the clip of a version gains nothing against privacy.
"""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dp.contracts import AdaptiveClipSpec, BudgetSpec
from dp.encoding import _encode_segment
from dp.example_sum import ExampleSum
from dp.noise.adaptive_clip import BELOW, with_below
from dp.noise.grid import l2_squared_units
from secagg.manifest import Manifest
from tests.kits.tasks import adapter, built, seeded

LENGTH = 12
RANGE = {"clip_min": 1e-4, "clip_max": 1e4}


def manifest(quantile: float, **changes) -> Manifest:
    return built(
        adapter=adapter((4,), 3),
        adaptive_clip=AdaptiveClipSpec(quantile=quantile, **RANGE),
        budget=BudgetSpec(max_epsilon=None),
        **changes,
    )


QUANTILES = (0.01, 0.37, 0.5, 0.99)
EXAMPLE = [manifest(quantile) for quantile in QUANTILES]
DEVICE = [
    manifest(quantile, algorithm="fedavg", privacy="none", device_noise_multiplier=4.0)
    for quantile in QUANTILES
]
vectors = hnp.arrays(np.float64, LENGTH, elements=st.floats(width=64))
clips = st.floats(RANGE["clip_min"], RANGE["clip_max"])


@given(st.sampled_from(EXAMPLE), st.lists(vectors, max_size=3), vectors, clips, st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_one_example_moves_the_joint_sum_by_no_more_than_the_joint_bound(
    task: Manifest, others: list[np.ndarray], one: np.ndarray, clip: float, seed: int
) -> None:
    """The example comes last: what the others draw does not depend on it."""
    batch = ExampleSum(task, seeded(seed), clip)
    for gradient in others:
        batch.add(gradient)
    without = {name: values.copy() for name, values in batch.values().items()}
    batch.add(one)
    moved = {name: batch.values()[name] - values for name, values in without.items()}
    main, below = task.segments
    assert sum(int(u) ** 2 for u in moved["gradient"]) <= main.clip_units**2
    assert abs(int(moved[BELOW][0])) <= below.clip_units
    assert sum(int(u) ** 2 for v in moved.values() for u in v) <= l2_squared_units(task.segments)


@given(st.sampled_from(DEVICE), vectors, clips, st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_one_device_moves_the_sum_by_no_more_than_the_joint_bound(
    task: Manifest, one: np.ndarray, clip: float, seed: int
) -> None:
    """Against a device that sends zeros, before the noise that both add."""
    values = with_below(task, {"delta": one}, clip)
    units = [
        _encode_segment(task, segment, values[segment.name], bytes(32), seeded(seed))
        for segment in task.segments
    ]
    assert [len(part) for part in units] == [LENGTH, 1]
    assert sum(int(u) ** 2 for part in units for u in part) <= l2_squared_units(task.segments)
