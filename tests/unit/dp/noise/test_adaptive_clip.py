"""The clip follows the quantile that it names, at the joint cost, and cannot widen any bound."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from aggregator.algorithms import StepInput, server_step
from dp.accounting.statements import fewest, guaranteed_variance, headline, lines, ring_release
from dp.contracts import (
    AdaptiveClipSpec,
    CohortSpec,
    TrainingSpec,
)
from dp.contracts.adaptive import noise_growth
from dp.encoding import decode, encode
from dp.errors import MechanismError
from dp.example_sum import ExampleSum
from dp.noise.adaptive_clip import (
    BELOW,
    below_units,
    checked_clip,
    first_clip,
    next_clip,
    scaled,
    with_below,
)
from dp.noise.sampling import skellam
from dp.planning.gaussian import exact_epsilon
from secagg.errors import LocalProtocolError
from secagg.manifest import (
    Manifest,
)
from secagg.ring import add_into
from tests.kits.adaptive import DEVICES, NO_LIMIT, device_level, example_level
from tests.kits.tasks import built, seeded

# ---- the estimate


def norms(count: int) -> np.ndarray:
    """A skewed distribution whose quantiles are known: the k-th is exp(4 (k + 1/2) / count - 2)."""
    return np.exp(4 * (np.arange(count) + 0.5) / count - 2)


def follow(manifest: Manifest, releases: int, noise: bool) -> list[float]:
    """Clips over releases in which every device has the same norm again."""
    clips, own = [first_clip(manifest)], norms(DEVICES)
    draws = skellam(releases, guaranteed_variance(manifest, fewest(manifest)), seeded(3))
    for release in range(releases):
        total = sum(below_units(manifest, norm <= clips[-1]) for norm in own)
        clips.append(next_clip(manifest, clips[-1], total + int(draws[release]) * noise))
    return clips


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.02, 50.0])
def test_exact_sums_lead_to_the_true_quantile(quantile: float, start: float) -> None:
    terms = AdaptiveClipSpec(quantile=quantile, clip_min=1e-3, clip_max=1e3)
    manifest = device_level(adaptive_clip=terms, update_clip=start)
    last = follow(manifest, 200, noise=False)[-1]
    # Within one of a hundred devices of the quantile, and the step at a bit of difference.
    share = float((norms(DEVICES) <= last).mean())
    assert share == pytest.approx(quantile, abs=0.02)


def test_under_noise_the_clip_stays_about_the_quantile() -> None:
    """sigma_b = 4 z counts: 16 of 100 devices. The clips' mean over releases is the quantile's."""
    manifest = device_level()
    clips = follow(manifest, 400, noise=True)
    assert np.std(np.log(clips[50:])) > 0.01  # there is noise in it
    assert np.mean(np.log(clips[50:])) == pytest.approx(
        math.log(np.median(norms(DEVICES))), abs=0.2
    )


def test_a_fixed_point_needs_no_count_of_contributors() -> None:
    """With half the devices steps are half as long, and the clip stands still at the same place."""
    manifest = device_level()
    quarter = 25 * (below_units(manifest, True) + below_units(manifest, False))
    assert next_clip(manifest, 2.0, quarter) == 2.0
    up = below_units(manifest, False)
    whole, half = (next_clip(manifest, 2.0, count * up) for count in (DEVICES, DEVICES // 2))
    assert math.log(whole / 2) == pytest.approx(0.1, rel=1e-6)
    assert math.log(half / 2) == pytest.approx(0.05, rel=1e-6)


def test_the_clip_is_clamped_and_is_the_same_on_every_machine() -> None:
    manifest = device_level()
    assert next_clip(manifest, 1.0, 1 << 60) == 0.01
    assert next_clip(manifest, 1.0, -(1 << 60)) == 100.0
    assert next_clip(manifest, 1.0, 1000) == 0.99221793826  # exp(-0.2 * 1000 / 25600), 12 digits


@pytest.mark.parametrize("clip", [math.nan, math.inf, -1.0, 0.0, 0.0099, 100.1])
def test_a_clip_out_of_range_is_refused(clip: float) -> None:
    manifest = example_level()
    for use in (
        lambda: checked_clip(manifest, clip),
        lambda: ExampleSum(manifest, seeded(), clip),
        lambda: scaled(manifest, np.ones(64), clip),
        lambda: next_clip(manifest, clip, 0),
    ):
        with pytest.raises(MechanismError) as refused:
            use()
        assert refused.value.reason == "clip-out-of-range"


def test_what_has_no_adaptive_clip_says_so() -> None:
    with pytest.raises(MechanismError) as refused:
        checked_clip(built(), 1.0)
    assert refused.value.reason == "clip-not-adaptive"
    with pytest.raises(MechanismError) as refused:
        ExampleSum(example_level(), seeded())
    assert refused.value.reason == "clip-missing"
    unset = msgspec.structs.replace(device_level(), training=None)
    with pytest.raises(MechanismError) as refused:
        next_clip(unset, 1.0, 0)
    assert refused.value.reason == "denominator-missing"


# ---- the cost


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
def test_epsilon_is_that_of_the_joint_sensitivity(quantile: float) -> None:
    """Recomputed from the theorems alone: Agarwal, Kairouz, Liu 2021, over integer orders, and the
    Gaussian noise that the sum's is a post-processing of."""
    manifest = example_level(adaptive_clip=AdaptiveClipSpec(quantile=quantile))
    main, below = manifest.segments
    squared = main.clip_units**2 + below.clip_units**2
    l1 = math.ceil(math.sqrt(main.length * main.clip_units**2)) + below.clip_units
    mu = manifest.noise.share_variance * manifest.noise.honest_min
    event = ring_release(manifest, fewest(manifest), 1)
    assert (event.l2_squared, event.variance) == (squared, mu)
    orders = np.arange(2, 257)
    rdp = 4 * (
        orders * squared / (2 * mu)
        + np.minimum(((2 * orders - 1) * squared + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu))
    )
    delta = manifest.budget.delta
    mine = (rdp + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)).min()
    assert headline(lines(manifest, 4, renyi=True)) == pytest.approx(mine, rel=1e-4)
    exact = exact_epsilon(math.sqrt((mu - 1.5 * math.sqrt(mu)) / squared), 4, delta)
    assert headline(lines(manifest, 4)) == pytest.approx(exact, rel=1e-4)


def test_the_estimate_costs_under_one_per_cent_of_noise() -> None:
    """The same multiplier and cost; the vector carries sqrt(1 + 1/64) times the noise."""
    fixed, adaptive = built(budget=NO_LIMIT), example_level()
    assert noise_growth(fixed) == 1.0
    assert 1.0077 < noise_growth(adaptive) < 1.008
    grown = adaptive.noise.share_variance / fixed.noise.share_variance
    assert math.sqrt(grown) == pytest.approx(noise_growth(adaptive), rel=1e-5)
    costs = [headline(lines(manifest, 4)) for manifest in (fixed, adaptive)]
    assert costs[0] == pytest.approx(costs[1], rel=1e-4)


def test_andrews_formula_is_the_joint_sensitivity() -> None:
    """z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2), with sigma_b in counts and sensitivity 1/2."""
    manifest, z = example_level(noise_multiplier=1.4), 1.4
    main, below = manifest.segments
    deviation = math.sqrt(manifest.noise.share_variance * manifest.noise.honest_min)
    z_delta, sigma_b = deviation / main.clip_units, deviation / below.scale
    assert z_delta == pytest.approx((z**-2 - (2 * sigma_b) ** -2) ** -0.5, rel=1e-5)


# ---- what a unit sends


def summed(manifest: Manifest, units: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    payload = None
    for number, values in enumerate(units):
        lanes = encode(manifest, values, rotation_seed=bytes(32), random_bytes=seeded(number))
        if payload is None:
            payload = lanes
        else:
            add_into(payload, lanes, manifest.encoding.ring_bits)
    return decode(manifest, payload, survivors=len(units), rotation_seed=bytes(32))


@pytest.mark.parametrize("clip", [0.5, 1.0, 40.0])
def test_device_sums_come_back_in_real_units(clip: float) -> None:
    cohort = CohortSpec(size_min=6, size_max=6, survivors_min=4)
    manifest = device_level(cohort=cohort)
    quiet = msgspec.structs.replace(manifest.noise, share_variance=1, removable_drops=())
    manifest = msgspec.structs.replace(manifest, noise=quiet)  # to see the signal
    generator = np.random.default_rng(1)
    deltas = [generator.normal(size=64) * size for size in (0.01, 0.1, 0.5, 1, 2, 9)]
    sums = summed(manifest, [with_below(manifest, {"delta": d}, clip) for d in deltas])
    step = server_step(
        StepInput(manifest, np.zeros(64, np.float32), {"clip": np.array([clip])}, sums)
    )
    lengths = [np.linalg.norm(d) for d in deltas]
    clipped = sum(d * min(1.0, clip / length) for d, length in zip(deltas, lengths, strict=True))
    assert np.abs(step.vector - clipped / 6).max() < 4e-3 * clip
    bits = [below_units(manifest, length <= clip) for length in lengths]
    assert abs(step.clip.below_units - sum(bits)) < 20
    assert step.clip.clip == next_clip(manifest, clip, step.clip.below_units)
    assert step.optimiser["clip"][0] == step.metrics["clip"] == step.clip.clip


def test_the_servers_momentum_outlives_a_moving_clip() -> None:
    training = TrainingSpec(server_optimiser="momentum")
    manifest = device_level(training=training)
    sums = {"delta": np.ones(64), BELOW: np.zeros(1)}
    state = {"clip": np.array([2.0])}
    first = server_step(StepInput(manifest, np.zeros(64, np.float32), state, sums))
    assert first.vector == pytest.approx(np.full(64, 2.0 / DEVICES))
    second = server_step(StepInput(manifest, first.vector, first.optimiser, sums))
    assert second.optimiser.keys() == {"momentum", "clip"}
    with pytest.raises(LocalProtocolError) as refused:
        server_step(StepInput(manifest, first.vector, {}, sums))
    assert refused.value.reason == "clip-missing"


def test_examples_count_one_by_one() -> None:
    manifest = example_level(examples_max=8)
    batch = ExampleSum(manifest, seeded(1), 0.25)
    for size in (0.1, 0.25, 0.2501, 3.0):
        gradient = np.zeros(64)
        gradient[0] = size
        batch.add(gradient)
    batch.add(np.full(64, math.nan))  # counts as zero in both
    batch.add(np.full(64, 1e308))  # also when only its scaled form is not finite
    both = 2 * (below_units(manifest, True) + below_units(manifest, False))
    assert batch.values()[BELOW].tolist() == [both] == [batch.below]
    # 0.1, 0.25, 0.25, 0.25 of a clip of 0.25, on the grid of the manifest's clip.
    assert batch.total[0] / 1024 == pytest.approx(0.1 * 4 + 3, rel=5e-3)


def test_an_abstaining_or_failed_unit_counts_as_neither() -> None:
    from client_sdk.contribution import zero_contribution

    for manifest in (example_level(), device_level()):
        zeros = zero_contribution(manifest)
        assert zeros.keys() == {segment.name for segment in manifest.segments}
        assert zeros[BELOW].dtype == np.int64
        assert not zeros[BELOW].any()
        encode(manifest, zeros, rotation_seed=bytes(32), random_bytes=seeded())


def test_a_bit_beyond_its_bound_is_refused() -> None:
    manifest = device_level()
    for below, reason in (
        (np.array([manifest.segments[1].clip_units + 1]), "segment-bound"),
        (np.array([0.5]), "segment-type"),
    ):
        with pytest.raises(MechanismError) as refused:
            encode(
                manifest,
                {"delta": np.zeros(64), BELOW: below},
                rotation_seed=bytes(32),
                random_bytes=seeded(),
            )
        assert refused.value.reason == reason


@pytest.mark.parametrize("algorithm", ["fedavg", "fedavgm", "fednova", "fedprox"])
def test_a_server_step_is_that_of_a_fixed_clip_on_sums_in_real_units(algorithm: str) -> None:
    """Twice the clip that the grid is for, so the decoded sums count double and nothing else."""
    training = TrainingSpec(
        proximal_mu=0.1 if algorithm == "fedprox" else 0.0, server_learning_rate=0.5
    )
    terms = {"algorithm": algorithm, "training": training}
    adaptive, fixed = device_level(**terms), device_level(**terms, adaptive_clip=None)
    delta, start = np.linspace(-3, 2, 64), np.linspace(0, 1, 64).astype(np.float32)
    state = {"clip": np.array([2.0])}
    moved = server_step(StepInput(adaptive, start, state, {"delta": delta, BELOW: np.zeros(1)}))
    expected = server_step(StepInput(fixed, start, {}, {"delta": 2 * delta}))
    np.testing.assert_array_equal(moved.vector, expected.vector)
    assert moved.metrics.pop("clip") == 2.0
    assert moved.metrics == expected.metrics
    assert {**moved.optimiser, "clip": 0}.keys() == {**expected.optimiser, "clip": 0}.keys()


def test_secret_abstention_samples_the_bit_with_the_vector() -> None:
    manifest = device_level(participation_rate=0.5)
    assert manifest.training.denominator == DEVICES / 2
    plain, amplified = lines(manifest, 4)
    assert amplified.amplified
    assert amplified.epsilon < plain.epsilon
