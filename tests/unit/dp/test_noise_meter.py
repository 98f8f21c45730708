"""The noise meter shows missing noise, and never accuses an honest release."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dp.accounting.statements import ReleaseFacts
from dp.contracts import BudgetSpec, CohortSpec
from dp.encoding import encode
from dp.example_sum import ExampleSum
from dp.noise.sampling import skellam
from dp.noise_meter import noise_interval
from secagg.manifest import Manifest
from secagg.ring import add_into, with_checks
from tests.kits.tasks import adapter, built, seeded, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
LENGTH = 1 << 16


def device_level(multiplier: float) -> Manifest:
    cohort = CohortSpec(size_min=20, size_max=20, survivors_min=15)
    return built(
        statistics(
            ("x", LENGTH, 1.0), device_noise_multiplier=multiplier, cohort=cohort, budget=NO_LIMIT
        )
    )


def released(manifest: Manifest, variance: int, survivors: int) -> np.ndarray:
    """A sum of ``survivors`` full-length vectors, all alike, plus noise of ``variance``."""
    signal = np.zeros(LENGTH, dtype=np.int64)
    signal[0] = manifest.segments[0].clip_units * survivors
    payload = with_checks(
        signal + skellam(LENGTH, variance, seeded()),
        manifest.encoding.ring_bits,
        manifest.encoding.slice_length,
    )
    return payload


def test_an_honest_release_is_certified_closely() -> None:
    manifest = device_level(1.0)
    total = 20 * manifest.noise.share_variance
    interval = noise_interval(manifest, released(manifest, total, 20), ReleaseFacts(survivors=20))
    assert interval.low <= total <= interval.high
    # Twenty aligned vectors at d = 65,536: within a tenth on both sides.
    assert interval.low > 0.9 * total
    assert interval.high < 1.1 * total
    assert not interval.missing


def test_devices_that_leave_their_noise_out_are_shown() -> None:
    manifest = device_level(1.0)
    share = manifest.noise.share_variance
    # One silent survivor is counted on; five are not.
    assert not noise_interval(
        manifest, released(manifest, 19 * share, 20), ReleaseFacts(survivors=20)
    ).missing
    assert noise_interval(
        manifest, released(manifest, 15 * share, 20), ReleaseFacts(survivors=20)
    ).missing


def test_a_distributed_sum_without_any_noise_is_shown() -> None:
    manifest = built(adapter=adapter((4096, 4096)), noise_multiplier=1.4, budget=NO_LIMIT)
    batch = ExampleSum(manifest, seeded())
    for gradient in np.random.default_rng(0).normal(size=(20, 32_768)):
        batch.add(gradient)
    values = {"gradient": batch.total}
    noiseless = msgspec.structs.replace(
        manifest, noise=msgspec.structs.replace(manifest.noise, share_variance=1)
    )
    for sender, missing in ((manifest, False), (noiseless, True)):
        total = None
        for device in range(4):
            payload = encode(sender, values, rotation_seed=b"", random_bytes=seeded(device))
            if total is None:
                total = payload
            else:
                add_into(total, payload, manifest.encoding.ring_bits)
        interval = noise_interval(manifest, total, ReleaseFacts(survivors=4))
        assert interval.missing is missing
        # examples_max bounds the signal so loosely that nothing is certified from below.
        assert interval.low == 0


@pytest.mark.parametrize("multiplier", [0.6, 1.0, 4.0])
def test_an_honest_release_is_never_accused(multiplier: float) -> None:
    manifest = device_level(multiplier)
    for survivors in (15, 20):
        total = survivors * manifest.noise.share_variance
        interval = noise_interval(
            manifest, released(manifest, total, survivors), ReleaseFacts(survivors=survivors)
        )
        assert interval.low <= total <= interval.high
        assert not interval.missing


def test_nothing_is_said_without_noise_or_about_short_vectors() -> None:
    plain = built(algorithm="fedavg", privacy="none")
    assert noise_interval(plain, np.zeros(0, dtype=np.uint32), ReleaseFacts(survivors=5)) is None
    short = built()
    payload = encode(
        short, {"gradient": np.zeros(64, np.int64)}, rotation_seed=b"", random_bytes=seeded()
    )
    assert noise_interval(short, payload, ReleaseFacts(survivors=4)) is None
