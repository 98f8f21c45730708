"""Lines, charges and plans, field by field, from the integers of a manifest."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import msgspec
import pytest

from dp.accounting import statements
from dp.accounting.budget import UNITS, Account, Charge, charges_of, without_noise
from dp.accounting.events import (
    Composed,
    DiscreteGaussianSum,
    Event,
    PoissonSampled,
    SkellamRelease,
    replace_one,
)
from dp.accounting.statements import (
    ACCOUNTANT_DISCRETE_GAUSSIAN,
    ACCOUNTANT_SKELLAM,
    ACCOUNTANT_SKELLAM_RENYI,
    OVERRUN_DRAWS,
    POISSON,
    NoiseKind,
    PrivacyStatement,
    ReleaseFacts,
    checked_multiplier,
    draws_per_release,
    epsilon_of,
    fewest,
    guaranteed_variance,
    lines,
    local_step,
    ring_release,
    slack_log2,
)
from dp.contracts import BudgetSpec, CohortSpec, TrainingSpec
from dp.errors import AccountingError
from dp.planning.epsilon import PLAN_SHARES, plan_epsilon
from dp.planning.gaussian import gaussian_epsilon
from secagg.manifest import Manifest
from tests.kits.tasks import built, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
ALL = "the aggregator, knowing the noise of 1 device, and everyone who sees the model"
ONE_MORE = ", if time does not show one example more"


def of(parts: list[tuple[Event, int]], draws: int, manifest: Manifest) -> float:
    event = Composed(tuple(sorted(parts, key=lambda item: repr(item[0]))))
    return epsilon_of(event, manifest.budget.delta, -90 + math.log2(draws))


def test_the_lines_of_distributed_noise() -> None:
    manifest = built(report_slot_s=60.0, budget=NO_LIMIT)
    facts = [ReleaseFacts(survivors=u) for u in (4, 6, 4)]
    share = manifest.noise.share_variance
    quiet, loud = SkellamRelease(1024**2, 8192, 3 * share), SkellamRelease(1024**2, 8192, 5 * share)
    draws = 3 * (64 * 6 + OVERRUN_DRAWS)
    plain = PrivacyStatement(
        mode=NoiseKind.DISTRIBUTED,
        unit="example",
        adversary=ALL + ", if one example more fits the slot",
        adjacency="add-or-remove",
        amplified=False,
        accountant="skellam/least-of-gaussian-and-rdp",
        epsilon=of([(quiet, 2), (loud, 1)], draws, manifest),
        delta=manifest.budget.delta,
    )
    sampled = of(
        [(PoissonSampled(0.25, quiet), 2), (PoissonSampled(0.25, loud), 1)], draws, manifest
    )
    amplified = msgspec.structs.replace(
        plain,
        adversary=ALL + ", if report-in slots and failures do not show the batch",
        amplified=True,
        accountant="skellam-rdp/agarwal-kairouz-liu-2021+poisson/symmetric-noise",
        epsilon=sampled,
    )
    assert lines(manifest, facts) == (plain, amplified)
    exchanged = msgspec.structs.replace(
        plain,
        adversary=ALL + ", if another example fits the slot",
        adjacency="replace-one",
        epsilon=of([(replace_one(quiet), 2), (replace_one(loud), 1)], draws, manifest),
    )
    assert lines(manifest, facts, replaced=True) == (exchanged,)


def test_the_lines_of_local_noise() -> None:
    manifest = built(algorithm="fedavg", budget=NO_LIMIT, training=TrainingSpec(local_steps=3))
    step = local_step(manifest)
    plain, amplified = lines(manifest, 2)
    assert plain == PrivacyStatement(
        mode=NoiseKind.LOCAL,
        unit="example",
        adversary="everyone" + ONE_MORE,
        adjacency="add-or-remove",
        amplified=False,
        accountant=ACCOUNTANT_SKELLAM,
        epsilon=of([(step, 6)], 6 * 64, manifest),
        delta=manifest.budget.delta,
    )
    assert amplified.adversary == "everyone, if time does not show the batch"
    assert amplified.accountant == ACCOUNTANT_SKELLAM_RENYI + POISSON
    assert amplified.epsilon == of([(PoissonSampled(0.25, step), 6)], 6 * 64, manifest)
    (exchanged,) = lines(manifest, 2, replaced=True)
    assert (exchanged.adjacency, exchanged.amplified) == ("replace-one", False)
    assert exchanged.epsilon == of([(replace_one(step), 6)], 6 * 64, manifest)


def test_the_lines_of_device_level_noise() -> None:
    cohort = CohortSpec(size_min=6, size_max=10, survivors_min=5, silent_max=2)
    manifest = built(
        statistics(
            ("x", 50, 1.0),
            device_noise_multiplier=1.0,
            participation_rate=0.25,
            mechanism="discrete-gaussian",
            cohort=cohort,
            budget=NO_LIMIT,
        )
    )
    units = manifest.segments[0].clip_units
    l1 = math.isqrt(50 * units * units - 1) + 1
    share = manifest.noise.share_variance
    event = DiscreteGaussianSum(units**2, l1, share, 6, 50, "zero-out")
    plain, amplified = lines(manifest, [ReleaseFacts(survivors=8)] * 3)
    assert plain == PrivacyStatement(
        mode=NoiseKind.DEVICE_LEVEL,
        unit="device",
        adversary="the aggregator with 1 other device, knowing the noise of 2 devices, "
        "and everyone who sees the model, if time does not show the data",
        adjacency="zero-out",
        amplified=False,
        accountant=ACCOUNTANT_DISCRETE_GAUSSIAN,
        epsilon=of([(event, 3)], 3 * 50 * 10, manifest),
        delta=manifest.budget.delta,
    )
    assert amplified == msgspec.structs.replace(
        plain,
        adversary=plain.adversary + " and nothing but the sum depends on who abstains",
        amplified=True,
        accountant=ACCOUNTANT_DISCRETE_GAUSSIAN + POISSON,
        epsilon=of([(PoissonSampled(0.25, event), 3)], 3 * 50 * 10, manifest),
    )
    assert len(lines(manifest, 3, replaced=True)) == 1


MODES: list[tuple[dict[str, Any], int, float]] = [
    ({"report_slot_s": 60.0}, 64 * 6 + OVERRUN_DRAWS, 0.25),
    ({"algorithm": "fedavg", "training": TrainingSpec(local_steps=1)}, 64, 0.25),
    (
        {
            "algorithm": "fedavg",
            "privacy": "none",
            "device_noise_multiplier": 2.0,
            "participation_rate": 0.5,
        },
        64 * 6,
        0.5,
    ),
]


@pytest.mark.parametrize(("terms", "draws", "rate"), MODES)
def test_every_line_pays_for_a_sampler_that_is_not_perfect(
    terms: dict[str, Any], draws: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one so coarse that it shows: the real one moves no digit of a float."""
    manifest = built(**terms, budget=NO_LIMIT)
    event = ring_release(manifest, fewest(manifest), 1) if manifest.noise else local_step(manifest)
    if manifest.device_privacy is not None:
        event = ring_release(manifest, fewest(manifest), 1, "zero-out")
    monkeypatch.setattr(statements, "SAMPLER_LOG2", -44.0)
    slack, delta = -44 + math.log2(2 * draws), manifest.budget.delta
    plain, amplified = lines(manifest, 2)
    assert plain.epsilon == epsilon_of(Composed(((event, 2),)), delta, slack)
    sampled = Composed(((PoissonSampled(rate, event), 2),))
    assert amplified.epsilon == epsilon_of(sampled, delta, slack)
    assert plain.epsilon > epsilon_of(Composed(((event, 2),)), delta, slack - 1)
    assert amplified.epsilon > epsilon_of(sampled, delta, slack - 1)


def test_no_amplified_line_at_rate_one_or_without_a_slot() -> None:
    assert [line.amplified for line in lines(built(sampling_rate=1.0, report_slot_s=9.0), 1)] == [
        False
    ]
    assert [line.amplified for line in lines(built(report_slot_s=1e-3), 1)] == [False, True]
    whole = built(algorithm="fedavg", sampling_rate=1.0, budget=NO_LIMIT)
    assert [line.amplified for line in lines(whole, 1)] == [False]


def test_an_integer_of_releases_is_so_many_at_the_fewest_survivors() -> None:
    manifest = built(budget=NO_LIMIT)
    worst = ReleaseFacts(survivors=4)
    assert fewest(manifest) == worst
    assert lines(manifest, 3) == lines(manifest, [worst] * 3) == lines(manifest, {worst: 3})
    assert lines(manifest, 0)[0].epsilon == 0.0


def test_a_release_is_what_the_survivors_that_count_have_added() -> None:
    manifest = built(device_noise_multiplier=1.0, examples_max=16, budget=NO_LIMIT)
    share = manifest.noise.share_variance
    facts = ReleaseFacts(survivors=5)
    assert guaranteed_variance(manifest, facts) == 4 * share
    assert ring_release(manifest, facts, 1) == SkellamRelease(1024**2, 8192, 4 * share)
    assert ring_release(manifest, facts, 16, "zero-out") == SkellamRelease(
        (16 * 1024) ** 2, 16 * 8192, 4 * share, "zero-out"
    )
    parts = msgspec.structs.replace(manifest.noise, removable_drops=(2,))
    in_parts = msgspec.structs.replace(manifest, noise=parts)
    unknown = guaranteed_variance(in_parts, ReleaseFacts(survivors=5))
    assert unknown == share * manifest.noise.honest_min
    known = guaranteed_variance(in_parts, ReleaseFacts(survivors=6, masking_set_size=6))
    assert known == 5 * -(-share * manifest.noise.honest_min // 5)
    assert draws_per_release(manifest) == 64 * 6
    assert draws_per_release(in_parts) == 64 * 6 * 2
    assert draws_per_release(built(algorithm="fedavg", budget=NO_LIMIT)) == 64 * 6


def test_a_local_step_has_the_multiplier_s_noise_rounded_up() -> None:
    step = local_step(built(algorithm="fedavg", noise_multiplier=0.7, budget=NO_LIMIT))
    units = math.isqrt(step.l2_squared)
    assert units == 1024
    assert step.l1 == 8 * units
    assert step.variance == math.ceil(Fraction(0.7) ** 2 * units * units)
    assert step.adjacency == "add-or-remove"


def test_noise_multipliers_have_their_limits() -> None:
    assert checked_multiplier(1e6) == 1e6 == statements.MULTIPLIER_MAX
    assert checked_multiplier(1e-9) == 1e-9
    for wrong in (0.0, -1.0, 1.000001e6, math.inf, math.nan):
        with pytest.raises(AccountingError, match="parameter-out-of-range"):
            checked_multiplier(wrong)


def test_charges_are_the_integers_of_the_events() -> None:
    both = built(device_noise_multiplier=1.0, examples_max=16, budget=NO_LIMIT)
    variance = str(3 * both.noise.share_variance)
    example = Charge(
        unit="example",
        l2_squared=str(1024**2),
        l1="8192",
        variance=variance,
        count=1,
        draws=64 * 6 + 1024,
    )
    device = Charge(
        unit="device",
        l2_squared=str((16 * 1024) ** 2),
        l1=str(16 * 8192),
        variance=variance,
        count=1,
        draws=64 * 6,
    )
    assert charges_of(both) == (example, device)
    assert example.event() == SkellamRelease(1024**2, 8192, int(variance), "add-or-remove")
    assert device.event().adjacency == "zero-out"
    local = built(algorithm="fedavg", budget=NO_LIMIT, training=TrainingSpec(local_steps=3))
    charge, device = charges_of(local)
    assert device == without_noise("device")
    assert (charge.unit, charge.count, charge.draws) == ("example", 3, 3 * 64)
    assert charge.event() == local_step(local)
    untrained = msgspec.structs.replace(local, training=None)
    assert (charges_of(untrained)[0].count, charges_of(untrained)[0].draws) == (1, 64)
    assert lines(untrained, 3)[0].epsilon == of([(local_step(local), 3)], 3 * 64, local)
    none = charges_of(built(algorithm="fedavg", privacy="none"))
    assert none == tuple(map(without_noise, UNITS))
    assert [(charge.stated, charge.draws, charge.event().adjacency) for charge in none] == [
        (False, 0, "add-or-remove"),
        (False, 0, "zero-out"),
    ]


def test_charges_of_discrete_gaussian_shares_keep_their_number() -> None:
    manifest = built(mechanism="discrete-gaussian", budget=NO_LIMIT)
    charge, device = charges_of(manifest, ReleaseFacts(survivors=6))
    share = manifest.noise.share_variance
    assert (charge.variance, charge.shares, charge.length) == (str(share), 5, 64)
    assert charge.event() == DiscreteGaussianSum(1024**2, 8192, share, 5, 64, "add-or-remove")
    account = Account(delta=1e-5).spend("a", manifest, ReleaseFacts(survivors=6))
    draws = 64 * 6 + OVERRUN_DRAWS
    assert account.epsilon("example") == epsilon_of(
        Composed(((charge.event(), 1),)), 1e-5, slack_log2(draws)
    )
    most = 256  # examples of a device in one sum
    assert device.event() == DiscreteGaussianSum(
        (most * 1024) ** 2, most * 8192, share, 5, 64, "zero-out"
    )
    assert account.epsilon("device") == math.inf  # far above what can be vouched for
    assert account.total("device").unbounded == ()
    both = account.reserve("b", manifest)
    expected = Composed(
        tuple(
            sorted(
                [(charge.event(), 1), (charges_of(manifest)[0].event(), 1)],
                key=lambda item: repr(item[0]),
            )
        )
    )
    assert both.epsilon("example") == epsilon_of(expected, 1e-5, slack_log2(2 * draws))
    assert account.epsilon("example", charges_of(manifest)) == both.epsilon("example")


def test_a_plan_is_the_cost_of_its_event() -> None:
    units, length, rounds, delta = 1024, 64, 5, 1e-6
    variance = math.ceil(Fraction(0.9) ** 2 * units**2)
    event = SkellamRelease(units**2, 8 * units, variance)
    assert plan_epsilon(0.9, rounds, delta, length=length) == (
        epsilon_of(Composed(((event, rounds),)), delta),
        ACCOUNTANT_SKELLAM,
    )
    assert plan_epsilon(0.9, rounds, delta, 0.5, length=length) == (
        epsilon_of(Composed(((PoissonSampled(0.5, event), rounds),)), delta),
        ACCOUNTANT_SKELLAM_RENYI + POISSON,
    )
    share = math.ceil(Fraction(0.9) ** 2 * units**2 / PLAN_SHARES)
    shares = DiscreteGaussianSum(units**2, 8 * units, share, PLAN_SHARES, length)
    assert plan_epsilon(
        0.9, rounds, delta, 1.0, "discrete-gaussian", length=length, adjacency="replace-one"
    ) == (
        epsilon_of(Composed(((replace_one(shares), rounds),)), delta),
        ACCOUNTANT_DISCRETE_GAUSSIAN,
    )
    assert plan_epsilon(2.0, 3, 1e-6, 1.0, "gaussian", adjacency="replace-one") == (
        gaussian_epsilon(2.0, 3, 1e-6, 1.0, "replace-one")
    )
    assert plan_epsilon(1.0, 10**7, 1e-6, length=1)[0] > 1e6
    assert plan_epsilon(1e3, 1, 1e-6, length=1 << 40)[0] > 0


@pytest.mark.parametrize(
    ("corrupt", "silent", "who"),
    [
        (0, 1, "the aggregator, knowing the noise of 1 device"),
        (0, 2, "the aggregator, knowing the noise of 2 devices"),
        (1, 1, "the aggregator with 1 other device"),
        (1, 3, "the aggregator with 1 other device, knowing the noise of 3 devices"),
        (2, 2, "the aggregator with 2 other devices"),
    ],
)
def test_a_line_names_no_more_devices_than_the_masks_stand_against(
    corrupt: int, silent: int, who: str
) -> None:
    cohort = CohortSpec(
        size_min=16, size_max=16, survivors_min=14, corrupt_max=corrupt, silent_max=silent
    )
    manifest = built(cohort=cohort, budget=NO_LIMIT)
    assert {line.adversary for line in lines(manifest, 1)} == {
        who + ", and everyone who sees the model" + ONE_MORE
    }
