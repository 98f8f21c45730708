"""The step that a release adopts: on a grid where noise is, and close to the one that was asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aggregator.algorithms.rounding import LENGTH_MIN, on_grid, rounded
from secagg.lora.forms import size, stored
from tests.kits.lora_forms import adapter, random_vector, task

LOCAL: dict[str, Any] = {
    "privacy": "local",
    "noise_multiplier": 10.0,
    "budget": {"max_epsilon": None, "delta": 1e-5, "releases_max": 4},
}
OF_DEVICES: dict[str, Any] = {"device_noise_multiplier": 8.0}


@pytest.mark.parametrize("cells", [8, 64])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_the_error_is_at_most_half_a_cell_and_no_bias(cells: int, scale: float) -> None:
    coins = np.random.default_rng(1)
    before = np.zeros(5_000, np.float32)
    after = (scale * coins.normal(0, 1, 5_000)).astype(np.float32)
    step, error = (x.astype(np.float64) / scale for x in (after, on_grid(before, after, cells)))
    error -= step
    assert 0 < np.mean(error**2) <= np.mean(step**2) / (12 * cells**2) * 1.1
    assert abs(error.mean()) < 0.1 / cells


def test_what_does_not_move_stays_bit_for_bit() -> None:
    before = np.array([-0.0, 1e-40, 3.0, 1.0], np.float32)
    after = np.array([-0.0, 1e-40, 3.0, 1.3], np.float32)
    adopted = on_grid(before, after, 8)
    assert adopted.view(np.uint32)[:3].tolist() == before.view(np.uint32)[:3].tolist()
    assert adopted[3] == pytest.approx(1.3, abs=0.02)
    assert on_grid(before, before, 8) is before


@pytest.mark.parametrize("kind", ["lora", "ffa-lora", "rolora", "fedsvd", "product"])
def test_each_form_has_a_step_that_is_close_by(kind: str) -> None:
    layers = ((300, 200), (300, 200))
    shape = adapter(kind, layers)
    manifest = task(kind, adapter=shape, **(OF_DEVICES if kind == "product" else LOCAL))
    before, move = random_vector(shape, 1), random_vector(shape, 2, 0.01)
    after = before + move
    adopted = rounded(manifest, before, after)
    assert adopted.dtype == np.float32
    assert not np.array_equal(adopted, after)
    cells = 64 if kind in ("fedsvd", "product") else 8
    at = 0
    for tensor in stored(shape):  # by tensor: one of small steps is no worse off
        part = slice(at, at + size((tensor,)))
        at = part.stop
        error, step = adopted[part] - after[part], after[part] - before[part]
        assert np.std(error) <= np.std(step) / cells / 12**0.5 * 1.2


def test_a_tensor_of_small_steps_keeps_them_where_each_has_a_grid() -> None:
    shape = adapter("fedsvd", ((300, 200),))
    manifest = task("fedsvd", adapter=shape, **LOCAL)
    b, a = (size((tensor,)) for tensor in stored(shape))
    before = np.zeros(a + b, np.float32)
    after = random_vector(shape, 3, 1.0)
    after[:b] *= 1e-3
    error = rounded(manifest, before, after)[:b] - after[:b]
    assert np.std(error) < 0.01 * np.std(after[:b])


def test_without_noise_and_in_a_short_vector_nothing_is_rounded() -> None:
    shape = adapter("lora", ((300, 200),))
    before, after = random_vector(shape, 1), random_vector(shape, 2)
    assert rounded(task("lora", adapter=shape), before, after) is after
    short = adapter("lora", ((30, 20),))
    before, after = random_vector(short, 1), random_vector(short, 2)
    assert len(after) < LENGTH_MIN
    assert rounded(task("lora", adapter=short, **LOCAL), before, after) is after
