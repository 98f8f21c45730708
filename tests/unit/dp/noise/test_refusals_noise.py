"""Every refusal of grid and noise speaks: a stable reason, a sentence, both values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from dp import encoding, example_sum
from dp.errors import MechanismError
from dp.noise import discrete_gaussian, grid, quantisation, removable, sampling
from dp.noise.stream import BitStream
from secagg.errors import ConfigurationError, LocalProtocolError, SecaggError
from secagg.manifest import Manifest
from secagg.secret import Secret
from tests.kits.refusals import Case, device_level, in_parts
from tests.kits.tasks import built, seeded

NAN = math.nan
RANGE = "parameter-out-of-range"
CONFIG, LOCAL = ConfigurationError, LocalProtocolError


def encoded(
    values: dict[str, np.ndarray], manifest: Manifest | None = None, **changes: Any
) -> Callable[[], object]:
    return lambda: encoding.encode(
        device_level() if manifest is None else manifest,
        values,
        rotation_seed=b"c",
        random_bytes=seeded(),
        **changes,
    )


GRADIENT = {"gradient": np.zeros(64, np.int64)}
LARGE = {"gradient": np.full(64, -(2**31), np.int64)}
BOUND = 256 * 1024
CASES = {
    "a clip of zero": Case(
        lambda: grid.clip_units(0.0, 1), "clip-out-of-range", "> 0", 0.0, CONFIG
    ),
    "a clip without end": Case(
        lambda: grid.scale_for(math.inf, 1, noisy=True),
        "clip-out-of-range",
        "> 0",
        math.inf,
        CONFIG,
    ),
    "a clip below one unit": Case(
        lambda: grid.clip_units(0.5, 1), "clip-out-of-range", "1 to 1073741824 units", 0, CONFIG
    ),
    "a clip beyond the grid": Case(
        lambda: grid.clip_units(2.0**30 + 1, 1),
        "clip-out-of-range",
        "1 to 1073741824 units",
        2**30 + 1,
        CONFIG,
    ),
    "a clip that no scale serves": Case(
        lambda: grid.scale_for(1e-13, 1, noisy=True),
        "clip-out-of-range",
        "at least 2.27e-13",
        1e-13,
        CONFIG,
    ),
    "an integer clip of zero": Case(
        lambda: quantisation.to_units(np.ones(3), 1, 0, seeded()),
        "clip-out-of-range",
        None,
        0,
        LOCAL,
    ),
    "values that are none": Case(
        lambda: quantisation.to_units(np.array([1, NAN]), 1, 5, seeded()),
        "values-not-finite",
        error=LOCAL,
    ),
    "a variance that nobody draws": Case(
        lambda: sampling.add_skellam(np.zeros(1, np.int64), 0, seeded()),
        "variance-out-of-range",
        f"1 to {1 << 46}",
        0,
        LOCAL,
    ),
    "a sigma that nobody draws": Case(
        lambda: discrete_gaussian.add_discrete_gaussian(
            np.zeros(1, np.int64), (1 << 34) + 1, seeded()
        ),
        "variance-out-of-range",
        f"1 to {1 << 34}",
        (1 << 34) + 1,
        LOCAL,
    ),
    "a batch of fewer than none": Case(
        lambda: sampling.poisson_batch(-1, 0.5, seeded()),
        "batch-parameters",
        None,
        (-1, 0.5),
        LOCAL,
    ),
    "too little randomness": Case(
        lambda: BitStream(lambda _: bytes(31)), "random-bytes", 32, 31, LOCAL
    ),
    "an example without privacy": Case(
        lambda: example_sum.ExampleSum(device_level(), seeded()),
        "privacy-missing",
        error=MechanismError,
    ),
    "a gradient of another shape": Case(
        lambda: example_sum.ExampleSum(built(), seeded()).add(np.zeros(63)),
        "segment-shape",
        (64,),
        (63,),
        MechanismError,
    ),
    "local noise elsewhere": Case(
        lambda: example_sum.noisy_total(built(), np.zeros(64, np.int64), seeded()),
        "privacy-mode",
        error=MechanismError,
    ),
    "other segments": Case(
        encoded({"y": np.zeros(50)}), "segments-wrong", ["x"], ["y"], MechanismError
    ),
    "a segment of another shape": Case(
        encoded({"x": np.zeros(49)}), "segment-shape", (50,), (49,), MechanismError
    ),
    "a segment of complex numbers": Case(
        encoded({"x": np.zeros(50, complex)}),
        "segment-type",
        "real numbers",
        "<c16",
        MechanismError,
    ),
    "seeds that the task has not": Case(
        encoded({"x": np.zeros(50)}, noise_seeds=(Secret(bytes(32)),)),
        "noise-seeds",
        0,
        1,
        MechanismError,
    ),
    "a total of floats": Case(
        encoded({"gradient": np.zeros(64)}, built()), "segment-type", "int64", "<f8", MechanismError
    ),
    "a total too large": Case(
        encoded(LARGE, built()), "segment-bound", BOUND, 2**31, MechanismError
    ),
    "noise that the manifest lacks": Case(
        encoded(GRADIENT, msgspec.structs.replace(built(), noise=None)),
        "noise-missing",
        error=MechanismError,
    ),
    "a payload of another length": Case(
        lambda: encoding.decode(built(), np.ones(60, "<u4"), survivors=4, rotation_seed=b"c"),
        "segment-shape",
        64,
        59,
        MechanismError,
    ),
    "a payload of another count": Case(
        lambda: encoding.decode(built(), np.ones(65, "<u4"), survivors=4, rotation_seed=b"c"),
        "check-coordinates",
        4,
        [1],
        MechanismError,
    ),
    "a part that is not there": Case(
        lambda: removable.removable_part(in_parts(), 8, 2, Secret(bytes(32)), b"c"),
        "noise-level",
        None,
        2,
        MechanismError,
    ),
    "a part's seed": Case(
        lambda: removable.removable_part(in_parts(), 8, 0, Secret(bytes(31)), b"c"),
        "seed-size",
        32,
        31,
        MechanismError,
    ),
    "half a slice": Case(
        lambda: removable.remove_parts(np.zeros(9, "<u4"), (), 24, 0, 5),
        "noise-slice",
        "multiples of 65537, up to 9",
        (0, 5),
        MechanismError,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_refusal_says_what_was_expected_and_what_was_found(case: Case) -> None:
    with pytest.raises(SecaggError) as caught:
        case.call()
    error = caught.value
    assert type(error) is case.error
    assert error.message.endswith(".")
    assert (error.reason, error.expected, error.found) == (case.reason, case.expected, case.found)
