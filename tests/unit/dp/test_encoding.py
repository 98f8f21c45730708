"""What leaves a device, and what a sum says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from dp import encoding
from dp.contracts import BudgetSpec, CohortSpec
from dp.encoding import decode, encode
from dp.errors import MechanismError
from dp.example_sum import ExampleSum, noisy_total
from secagg.manifest import Manifest
from secagg.ring import add_into, centred, split_checks
from secagg.secret import Secret
from tests.kits.noisy_tasks import device_level
from tests.kits.said import Case, refused
from tests.kits.tasks import adapter, built, seeded, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
SEED = b"ctx"


def summed(manifest: Manifest, payloads: list[np.ndarray]) -> np.ndarray:
    total = payloads[0].copy()
    for payload in payloads[1:]:
        add_into(total, payload, manifest.encoding.ring_bits)
    return total


def integers(manifest: Manifest, payload: np.ndarray) -> np.ndarray:
    return centred(
        split_checks(payload, manifest.encoding.slice_length)[1], manifest.encoding.ring_bits
    )


def test_a_distributed_sum_is_the_clipped_gradients_plus_the_shares_of_noise() -> None:
    manifest = built(adapter=adapter((600, 200)), clip=0.5, noise_multiplier=0.8, budget=NO_LIMIT)
    rng = np.random.default_rng(0)
    payloads, expected = [], np.zeros(3200)
    for device in range(6):
        batch = ExampleSum(manifest, seeded(device))
        for gradient in rng.normal(size=(5, 3200)):
            batch.add(gradient.astype(np.float32))
            expected += gradient * 0.5 / np.linalg.norm(gradient)
        payloads.append(
            encode(
                manifest,
                {"gradient": batch.total},
                rotation_seed=SEED,
                random_bytes=seeded(100 + device),
            )
        )
    found = decode(manifest, summed(manifest, payloads), survivors=6, rotation_seed=SEED)
    noise = (found["gradient"] - expected) * manifest.segments[0].scale
    # Thirty roundings add at most 30/4 to a variance of hundreds of thousands.
    sd = (6 * manifest.noise.share_variance) ** 0.5
    assert abs(noise.std() / sd - 1) < 0.06
    assert stats.kstest(noise / sd, "norm").pvalue > 1e-3


def test_an_example_moves_the_total_by_at_most_the_clip_exactly() -> None:
    manifest = built(adapter=adapter((600, 200)))
    rng = np.random.default_rng(1)
    bound = manifest.segments[0].clip_units
    batch = ExampleSum(manifest, seeded(1))
    for size in (1e-6, 0.3, 1.0, 50.0, 1e30):
        before = batch.total.copy()
        batch.add(rng.normal(size=3200) * size)
        moved = batch.total - before
        assert int(moved @ moved) <= bound**2
    assert batch.count == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero(bad: float) -> None:
    batch = ExampleSum(built(), seeded())
    gradient = np.ones(64)
    gradient[3] = bad
    batch.add(gradient)
    assert not batch.total.any()
    assert batch.count == 1


def test_nothing_is_added_beyond_examples_max() -> None:
    manifest = built(examples_max=2)
    batch = ExampleSum(manifest, seeded())
    for _ in range(2):
        batch.add(np.ones(64))
    before = batch.total.copy()
    batch.add(np.ones(64))
    assert np.array_equal(batch.total, before)
    encode(manifest, {"gradient": before}, rotation_seed=SEED, random_bytes=seeded())


def test_a_total_beyond_the_public_bound_never_leaves() -> None:
    manifest = built(examples_max=2)
    total = np.zeros(64, dtype=np.int64)
    total[0] = 2 * manifest.segments[0].clip_units + 1
    with pytest.raises(MechanismError, match="segment-bound"):
        encode(manifest, {"gradient": total}, rotation_seed=SEED, random_bytes=seeded())


def test_an_empty_batch_sends_zero_plus_noise() -> None:
    manifest = built()
    batch = ExampleSum(manifest, seeded())
    payload = encode(manifest, {"gradient": batch.total}, rotation_seed=SEED, random_bytes=seeded())
    sent = integers(manifest, payload)
    assert sent.any()
    assert abs(sent.std() / manifest.noise.share_variance**0.5 - 1) < 0.4


def test_each_encoding_draws_fresh_noise() -> None:
    manifest, randomness = built(), seeded()
    total = {"gradient": np.zeros(64, dtype=np.int64)}
    first = encode(manifest, total, rotation_seed=SEED, random_bytes=randomness)
    assert not np.array_equal(
        first, encode(manifest, total, rotation_seed=SEED, random_bytes=randomness)
    )
    assert not total["gradient"].any()


def test_device_level_noise_clips_the_whole_update_and_hides_it_in_noise() -> None:
    cohort = CohortSpec(size_min=20, size_max=20, survivors_min=15)
    manifest = built(
        statistics(("x", 3000, 2.0), device_noise_multiplier=1.0, cohort=cohort, budget=NO_LIMIT)
    )
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(20, 3000)) * np.linspace(0.01, 1, 20)[:, None]
    clipped = vectors * np.minimum(1, 2.0 / np.linalg.norm(vectors, axis=1))[:, None]
    payloads = [
        encode(manifest, {"x": v}, rotation_seed=SEED, random_bytes=seeded(i))
        for i, v in enumerate(vectors)
    ]
    found = decode(manifest, summed(manifest, payloads), survivors=20, rotation_seed=SEED)["x"]
    noise = (found - clipped.sum(0)) * manifest.segments[0].scale
    assert abs(noise.std() / (20 * manifest.noise.share_variance) ** 0.5 - 1) < 0.06


def quiet(manifest: Manifest) -> Manifest:
    """The same manifest with the least noise there is, to see what lies under it."""
    noise = msgspec.structs.replace(manifest.noise, share_variance=1)
    return msgspec.structs.replace(manifest, noise=noise)


def test_a_device_level_vector_obeys_the_integer_bound_before_noise() -> None:
    manifest = quiet(
        built(statistics(("x", 500, 1.0), device_noise_multiplier=1.0, budget=NO_LIMIT))
    )
    spike = np.zeros(500)
    spike[7] = 1e9
    payload = encode(manifest, {"x": spike}, rotation_seed=SEED, random_bytes=seeded())
    sent = integers(manifest, payload).astype(float)
    # 500 coordinates of noise of variance 1 have a norm of about 22.
    assert np.linalg.norm(sent) < manifest.segments[0].clip_units + 40
    # The rotation has spread the spike over its block.
    assert np.abs(sent).max() < manifest.segments[0].clip_units / 4


def test_with_device_level_noise_a_failure_sends_zero_plus_noise() -> None:
    manifest = built(statistics(("x", 64, 1.0), device_noise_multiplier=1.0, budget=NO_LIMIT))
    payload = encode(
        manifest, {"x": np.full(64, np.nan)}, rotation_seed=SEED, random_bytes=seeded()
    )
    assert integers(manifest, payload).any()


def test_without_privacy_the_sum_is_exact_within_rounding() -> None:
    manifest = built(algorithm="fedavg", privacy="none")
    rng = np.random.default_rng(3)
    payloads, expected = [], np.zeros(64)
    for device in range(5):
        delta = rng.normal(size=64) * 0.05
        expected += delta * 0.5
        values = {
            "delta": delta * 0.5,
            "weight": np.array([0.5]),
            "loss": np.array([0.5 * (2 + device)]),
        }
        payloads.append(encode(manifest, values, rotation_seed=SEED, random_bytes=seeded(device)))
    found = decode(manifest, summed(manifest, payloads), survivors=5, rotation_seed=SEED)
    assert np.abs(found["delta"] - expected).max() <= 5 / manifest.segments[0].scale
    assert found["weight"][0] == pytest.approx(2.5, abs=1e-5)
    assert found["loss"][0] == pytest.approx(0.5 * (2 + 3 + 4 + 5 + 6), abs=1e-3)


def test_without_privacy_a_vector_that_is_not_finite_is_refused_loudly() -> None:
    manifest = built(statistics(("x", 3, 1.0)))
    with pytest.raises(MechanismError, match="values-not-finite"):
        encode(manifest, {"x": np.array([0, np.nan, 1])}, rotation_seed=SEED, random_bytes=seeded())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "segments-wrong"),
        ({"gradient": np.zeros(64, np.int64), "loss": np.zeros(1)}, "segments-wrong"),
        ({"gradient": np.zeros(63, np.int64)}, "segment-shape"),
        ({"gradient": np.zeros((8, 8), np.int64)}, "segment-shape"),
        ({"gradient": np.zeros(64)}, "segment-type"),
    ],
)
def test_values_that_do_not_fit_are_typed_errors(values: dict, reason: str) -> None:
    with pytest.raises(MechanismError) as caught:
        encode(built(), values, rotation_seed=SEED, random_bytes=seeded())
    assert caught.value.reason == reason


def test_complex_values_are_refused() -> None:
    manifest = built(statistics(("x", 3, 1.0)))
    with pytest.raises(MechanismError, match="segment-type"):
        encode(manifest, {"x": np.zeros(3, complex)}, rotation_seed=SEED, random_bytes=seeded())


def test_masks_that_did_not_cancel_are_seen() -> None:
    manifest = built()
    payload = encode(
        manifest,
        {"gradient": np.zeros(64, np.int64)},
        rotation_seed=SEED,
        random_bytes=seeded(),
    )
    with pytest.raises(MechanismError, match="check-coordinates"):
        decode(manifest, payload, survivors=2, rotation_seed=SEED)
    with pytest.raises(MechanismError, match="segment-shape"):
        decode(manifest, payload[:-1], survivors=1, rotation_seed=SEED)


def test_example_sum_needs_example_privacy() -> None:
    with pytest.raises(MechanismError, match="privacy-missing"):
        ExampleSum(built(algorithm="fedavg", privacy="none"), seeded())
    with pytest.raises(MechanismError, match="segment-shape"):
        ExampleSum(built(), seeded()).add(np.zeros(3))


def test_a_local_step_is_the_clipped_sum_plus_noise_of_the_multiplier() -> None:
    manifest = built(
        adapter=adapter((600, 200)), algorithm="fedavg", noise_multiplier=0.7, budget=NO_LIMIT
    )
    rng = np.random.default_rng(4)
    batch, expected = ExampleSum(manifest, seeded(1)), np.zeros(3200)
    for gradient in rng.normal(size=(300, 3200)):
        batch.add(gradient)
        expected += gradient / np.linalg.norm(gradient)
    noise = noisy_total(manifest, batch.total, seeded(2)) - expected
    assert noise.std() == pytest.approx(0.7, rel=0.05)
    assert stats.kstest(noise / 0.7, "norm").pvalue > 1e-3


def test_local_noise_belongs_to_local_tasks() -> None:
    with pytest.raises(MechanismError, match="privacy-mode"):
        noisy_total(built(), np.zeros(64, np.int64), seeded())


def test_device_noise_with_distributed_noise_is_drawn_once_at_the_larger_variance() -> None:
    manifest = built(device_noise_multiplier=1.0, examples_max=4, budget=NO_LIMIT)
    bound = manifest.segments[0].clip_units
    assert manifest.noise.share_variance == pytest.approx((4 * bound) ** 2 / 3, rel=1e-6)
    payload = encode(
        manifest,
        {"gradient": np.zeros(64, np.int64)},
        rotation_seed=SEED,
        random_bytes=seeded(),
    )
    assert abs(integers(manifest, payload).std() / (4 * bound / 3**0.5) - 1) < 0.4


def test_the_last_example_that_fits_is_added() -> None:
    batch = ExampleSum(built(examples_max=1), seeded())
    batch.add(np.ones(64))
    assert batch.total.any()
    assert batch.count == 1


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


REFUSED = {
    "other segments": Case(encoded({"y": np.zeros(50)}), "segments-wrong", ["x"], ["y"]),
    "a segment of another shape": Case(encoded({"x": np.zeros(49)}), "segment-shape", (50,), (49,)),
    "a segment of complex numbers": Case(
        encoded({"x": np.zeros(50, complex)}), "segment-type", "real numbers", "<c16"
    ),
    "seeds that the task has not": Case(
        encoded({"x": np.zeros(50)}, noise_seeds=(Secret(bytes(32)),)), "noise-seeds", 0, 1
    ),
    "a total of floats": Case(
        encoded({"gradient": np.zeros(64)}, built()), "segment-type", "int64", "<f8"
    ),
    "a total too large": Case(encoded(LARGE, built()), "segment-bound", BOUND, 2**31),
    "noise that the manifest lacks": Case(
        encoded(GRADIENT, msgspec.structs.replace(built(), noise=None)), "noise-missing"
    ),
    "a payload of another length": Case(
        lambda: encoding.decode(built(), np.ones(60, "<u4"), survivors=4, rotation_seed=b"c"),
        "segment-shape",
        64,
        59,
    ),
    "a payload of another count": Case(
        lambda: encoding.decode(built(), np.ones(65, "<u4"), survivors=4, rotation_seed=b"c"),
        "check-coordinates",
        4,
        [1],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], MechanismError)
