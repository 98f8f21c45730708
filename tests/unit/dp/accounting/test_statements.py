"""Lines of privacy: which are made, for whom, and that modes never mix."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from dp.accounting import statements
from dp.accounting.events import (
    SkellamRelease,
)
from dp.accounting.statements import (
    POISSON,
    NoiseKind,
    PrivacyStatement,
    ReleaseFacts,
    _counts,
    _ring_event,
    _sampled,
    epsilon_of,
    guaranteed_variance,
    headline,
    lines,
    local_step,
)
from dp.contracts import BudgetSpec, TrainingSpec
from dp.errors import AccountingError
from secagg.errors import ConfigurationError
from tests.kits.noisy_tasks import device_level, in_parts
from tests.kits.said import Case, refused
from tests.kits.tasks import DEMO_ADAPTER, built, spec, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)


def facts(*survivors: int) -> list[ReleaseFacts]:
    return [ReleaseFacts(survivors=count) for count in survivors]


def test_the_default_task_costs_less_than_eight() -> None:
    manifest = built(adapter=DEMO_ADAPTER)
    (line,) = lines(manifest, manifest.budget.releases_max)
    assert (line.mode, line.unit, line.amplified) == (NoiseKind.DISTRIBUTED, "example", False)
    assert 6.65 < line.epsilon < 6.66
    assert headline([line]) == line.epsilon


def test_releases_are_charged_for_the_noise_that_their_survivors_guarantee() -> None:
    manifest = built()
    worst = headline(lines(manifest, 4))
    assert headline(lines(manifest, facts(4, 4, 4, 4))) == worst
    assert headline(lines(manifest, facts(4, 5, 6, 6))) < worst
    assert (
        guaranteed_variance(manifest, ReleaseFacts(survivors=6))
        == 5 * manifest.noise.share_variance
    )
    assert (
        guaranteed_variance(manifest, ReleaseFacts(survivors=4))
        == 3 * manifest.noise.share_variance
    )


@pytest.mark.parametrize(("survivors", "reason"), [(3, "few"), (0, "few"), (7, "many")])
def test_a_release_that_breaks_the_manifest_has_no_cost(survivors: int, reason: str) -> None:
    with pytest.raises(AccountingError) as caught:
        lines(built(), facts(survivors))
    assert caught.value.reason == f"survivors-too-{reason}"


def test_cost_rises_with_each_release_and_order_does_not_matter() -> None:
    manifest = built()
    costs = [headline(lines(manifest, count)) for count in range(5)]
    assert costs == sorted(costs)
    assert costs[0] == 0.0
    assert lines(manifest, facts(4, 6, 5)) == lines(manifest, facts(6, 5, 4))


def test_amplified_line_of_distributed_noise_only_with_a_public_slot() -> None:
    assert all(not line.amplified for line in lines(built(), 4))
    plain, amplified = lines(built(report_slot_s=60.0), 4)
    assert not plain.amplified
    assert amplified.amplified
    assert amplified.epsilon < plain.epsilon
    assert "slots" in amplified.adversary
    assert "symmetric-noise" in amplified.accountant
    # The chance that a batch overruns its cap is paid from delta, so no line is free of it.
    assert headline([plain, amplified]) == plain.epsilon


def test_no_amplified_line_without_sampling() -> None:
    assert len(lines(built(report_slot_s=60.0, sampling_rate=1.0), 4)) == 1


def test_local_noise_composes_local_steps_against_everyone() -> None:
    manifest = built(
        algorithm="fedavg",
        noise_multiplier=1.4,
        budget=NO_LIMIT,
        training=TrainingSpec(local_steps=2),
    )
    plain, amplified = lines(manifest, 2)
    assert (plain.mode, plain.unit) == (NoiseKind.LOCAL, "example")
    assert plain.adversary == "everyone, if time does not show one example more"
    # Two releases of two steps are four steps: what four distributed sums cost.
    assert plain.epsilon == pytest.approx(headline(lines(built(), 4)), rel=1e-4)
    assert amplified.amplified
    assert amplified.epsilon < plain.epsilon / 1.5
    assert "time" in amplified.adversary
    slotted = lines(built(algorithm="fedavg", budget=NO_LIMIT, report_slot_s=60.0), 2)
    assert slotted[1].adversary == "everyone, if report-in slots do not show the batch"


def test_local_noise_does_not_depend_on_survivors() -> None:
    manifest = built(algorithm="fedavg", budget=NO_LIMIT)
    assert lines(manifest, facts(4, 4)) == lines(manifest, facts(6, 5))


def test_modes_are_separate_lines_and_never_one_epsilon() -> None:
    both = built(
        algorithm="fedavg", device_noise_multiplier=2.0, noise_multiplier=1.4, budget=NO_LIMIT
    )
    found = {(line.mode, line.unit) for line in lines(both, 2)}
    assert found == {(NoiseKind.LOCAL, "example"), (NoiseKind.DEVICE_LEVEL, "device")}
    example_only = built(algorithm="fedavg", noise_multiplier=1.4, budget=NO_LIMIT)
    device_only = built(
        algorithm="fedavg", privacy="none", device_noise_multiplier=2.0, budget=NO_LIMIT
    )
    # The noise of one mode is never counted in the other.
    assert lines(both, 2)[:2] == lines(example_only, 2)
    assert lines(both, 2)[2].epsilon == lines(device_only, 2)[0].epsilon


def test_abstention_gives_devices_an_amplified_line_of_their_own_and_no_headline() -> None:
    terms = {"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 2.0}
    everyone = built(**terms, budget=NO_LIMIT)
    coins = built(**terms, participation_rate=0.125, budget=NO_LIMIT)
    plain, amplified = lines(coins, 4)
    assert (plain,) == lines(everyone, 4)
    assert (amplified.amplified, amplified.unit, amplified.adjacency) == (
        True,
        "device",
        "zero-out",
    )
    assert amplified.accountant.endswith(POISSON)
    assert amplified.epsilon < plain.epsilon / 2
    assert headline(lines(coins, 4)) == plain.epsilon
    event = _sampled(_ring_event(coins, _counts(coins, 4), 1, "zero-out"), 0.125)
    assert amplified.epsilon >= epsilon_of(event, coins.budget.delta)
    assert coins.training.denominator == everyone.training.denominator / 8


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"device_noise_multiplier": 0.0}, "abstention-without-device-noise"),
        ({"participation_rate": 0.0}, "parameter-out-of-range"),
        ({"participation_rate": 1.5}, "parameter-out-of-range"),
        ({"participation_rate": math.nan}, "parameter-out-of-range"),
    ],
)
def test_a_rate_of_abstention_that_is_none_is_refused(terms: dict[str, float], reason: str) -> None:
    given = {"device_noise_multiplier": 2.0, "participation_rate": 0.5, **terms}
    with pytest.raises(ConfigurationError) as caught:
        built(algorithm="fedavg", privacy="none", budget=NO_LIMIT, **given)
    assert caught.value.reason == reason


def test_device_noise_with_distributed_noise_covers_the_sum_of_a_whole_device() -> None:
    manifest = built(device_noise_multiplier=1.0, examples_max=16, budget=NO_LIMIT)
    example, device = lines(manifest, 1)
    assert (example.mode, device.mode, device.adjacency) == (
        NoiseKind.DISTRIBUTED,
        NoiseKind.DEVICE_LEVEL,
        "zero-out",
    )
    alone = headline(
        lines(
            built(algorithm="fedavg", privacy="none", device_noise_multiplier=1.0, budget=NO_LIMIT),
            1,
        )
    )
    assert device.epsilon == pytest.approx(alone, rel=0.02)
    # Sixteen times the noise that one example needs: the example is all but free.
    assert example.epsilon < 0.4
    assert manifest.noise.share_variance * 3 >= (16 * manifest.segments[0].clip_units) ** 2


def test_statistics_with_device_noise_account_for_all_segments_together() -> None:
    one = built(statistics(("x", 8, 1.0), device_noise_multiplier=2.0, budget=NO_LIMIT))
    two = built(
        statistics(("x", 8, 1.0), ("y", 1, 50.0), device_noise_multiplier=2.0, budget=NO_LIMIT)
    )
    assert lines(two, 1)[0].epsilon == pytest.approx(lines(one, 1)[0].epsilon, rel=0.01)
    assert [segment.clip_units for segment in two.segments] == [1024, 1050] or (
        max(s.clip_units for s in two.segments) < 1.1 * min(s.clip_units for s in two.segments)
    )


def test_without_privacy_there_is_no_line_and_no_number() -> None:
    manifest = built(algorithm="fedavg", privacy="none")
    assert lines(manifest, 4) == ()
    assert headline(()) is None


def test_headline_is_the_largest_unamplified() -> None:
    def line(epsilon: float, amplified: bool) -> PrivacyStatement:
        return PrivacyStatement(
            mode=NoiseKind.LOCAL,
            unit="example",
            adversary="everyone",
            adjacency="add-or-remove",
            amplified=amplified,
            accountant="x",
            epsilon=epsilon,
            delta=1e-5,
        )

    assert headline([line(1.0, False), line(3.0, False), line(9.0, True)]) == 3.0


def test_local_step_is_relative_to_the_integer_clip() -> None:
    step = local_step(built(algorithm="fedavg", budget=NO_LIMIT, noise_multiplier=0.7))
    assert step.variance >= 0.49 * step.l2_squared
    assert step.variance <= 0.49 * step.l2_squared + 1


def test_negative_counts_are_refused() -> None:
    with pytest.raises(AccountingError):
        lines(built(), -1)


def test_a_task_without_noise_in_the_ring_guarantees_none() -> None:
    with pytest.raises(AccountingError) as caught:
        guaranteed_variance(built(algorithm="fedavg", budget=NO_LIMIT), ReleaseFacts(survivors=4))
    assert caught.value.reason == "noise-missing"
    assert spec().budget.max_epsilon == 8.0


def guaranteed(survivors: int, masking_set: int = 0) -> Callable[[], int]:
    facts = ReleaseFacts(survivors=survivors, masking_set_size=masking_set)
    return lambda: statements.guaranteed_variance(in_parts(), facts)


RELEASE = SkellamRelease(100, 10, 900)
REFUSED = {
    "no noise in the ring": Case(
        lambda: statements.guaranteed_variance(
            built(algorithm="fedavg", budget=NO_LIMIT), ReleaseFacts(survivors=4)
        ),
        "noise-missing",
    ),
    "too few survivors": Case(guaranteed(4), "survivors-too-few", (5, 10), 4),
    "too many survivors": Case(guaranteed(11), "survivors-too-many", (5, 10), 11),
    "more survivors than vectors": Case(guaranteed(7, 6), "masking-set-size", "at least 7", 6),
    "a masking set too large": Case(guaranteed(7, 11), "masking-set-size", (5, 10), 11),
    "no local noise": Case(lambda: statements.local_step(device_level()), "privacy-missing"),
    "no noise": Case(
        lambda: statements.checked_multiplier(0.0),
        "parameter-out-of-range",
        "> 0, at most 1e+06",
        0.0,
    ),
    "a negative count of releases": Case(
        lambda: statements.lines(built(), -1), "parameter-out-of-range"
    ),
    "a distance beyond 1": Case(
        lambda: statements.epsilon_of(RELEASE, 1e-5, 0.1),
        "parameter-out-of-range",
        "log2 at most 0",
        0.1,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    refused(REFUSED[name], AccountingError)
