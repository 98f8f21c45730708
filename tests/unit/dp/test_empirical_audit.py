"""The one-run audit: a sound bound, below the accountant's claim, and above a broken one's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from dp.empirical_audit import (
    AttackResult,
    epsilon_lower_bound,
    guess_probability,
    influence,
    judge,
    run_attack,
)
from dp.errors import AccountingError
from secagg_cli.audit.attack import Sabotage, run
from secagg_cli.main import app
from tests.kits.tasks import adapter, built, seeded


def reference(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Theorem 5.2 by scipy's binomials, term by term."""
    q = 1 / (1 + np.exp(-eps))
    beta = stats.binom.sf(v - 1, r, q)
    alpha = max(stats.binom.pmf(range(v - i, v), r, q).sum() / i for i in range(1, v + 1))
    return min(1.0, beta + 2 * m * delta * alpha)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize(("guesses", "correct"), [(10, 10), (100, 71), (200, 100), (50, 1)])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
def test_the_bound_is_that_of_the_theorem(
    guesses: int, correct: int, epsilon: float, delta: float
) -> None:
    found = guess_probability(1000, guesses, correct, epsilon, delta)
    assert found == pytest.approx(reference(1000, guesses, correct, epsilon, delta), rel=1e-7)


@pytest.mark.parametrize(
    ("counts", "delta", "printed"),
    [((1000, 100, 75), 1e-4, 0.673), ((100_000, 1510, 1439), 1e-5, 2.675)],
)
def test_the_bound_is_the_one_that_the_paper_prints(
    counts: tuple[int, int, int], delta: float, printed: float
) -> None:
    """arXiv 2305.08846: Appendix D, and section 7 (figure 11)."""
    assert epsilon_lower_bound(*counts, delta, 0.95) == pytest.approx(printed, abs=1e-3)


def test_all_right_without_delta_is_the_closed_form() -> None:
    """q^r = 1 - confidence at the bound."""
    found = epsilon_lower_bound(64, 64, 64, 0.0, 0.95)
    q = 0.05 ** (1 / 64)
    assert found == pytest.approx(np.log(q / (1 - q)), abs=1e-6)


def test_guessing_at_random_shows_nothing() -> None:
    assert epsilon_lower_bound(1000, 200, 100, 1e-5, 0.95) == 0.0
    rng = np.random.default_rng(0)
    bounds = [
        judge(rng.normal(size=256), rng.random(256) < 0.5, 1e-5, 0.95).epsilon_lower
        for _ in range(60)
    ]
    assert sum(bound > 0 for bound in bounds) <= 8  # 3 are expected at most


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_randomised_response_of_known_epsilon_is_bounded_from_below(noise: float) -> None:
    rng = np.random.default_rng(1)
    coins = rng.random(4000) < 0.5
    truthful = rng.random(4000) < 1 / (1 + np.exp(-noise))
    scores = np.where(coins == truthful, 1.0, -1.0) + rng.random(4000) * 1e-3
    found = judge(scores, coins, 0.0, 0.95).epsilon_lower
    assert 0.6 * noise < found <= noise


@pytest.mark.parametrize(
    "arguments",
    [(10, 11, 5, 0.0, 0.9), (10, 5, 6, 0.0, 0.9), (10, 5, 5, 0.0, 1.0), (10, 5, 5, -1.0, 0.9)],
)
def test_an_impossible_audit_is_refused(arguments: tuple[int, int, int, float, float]) -> None:
    with pytest.raises(AccountingError) as caught:
        epsilon_lower_bound(*arguments)
    assert caught.value.reason == "parameter-out-of-range"


@pytest.mark.parametrize("canaries", [256, 1024])
def test_the_attack_on_honest_training_stays_below_the_claim(canaries: int) -> None:
    result = run(canaries, 4, 4.0, 0.95, Sabotage.none, seeded(canaries))
    assert result.holds
    assert 0 <= result.judgement.epsilon_lower < result.epsilon_upper < 4


def test_the_attack_sees_what_little_noise_does_not_hide() -> None:
    """It is an attack: with a large epsilon it finds a good part of it."""
    result = run(1024, 4, 0.7, 0.95, Sabotage.none, seeded(3))
    assert result.holds
    assert result.judgement.epsilon_lower > 1.5


LOUD = (Sabotage.no_noise, Sabotage.lost_noise, Sabotage.no_clip, Sabotage.repeated_noise)
CLIPS = {
    Sabotage.no_clip: 8.0,
    Sabotage.two_clips: 2.0,
    Sabotage.counted_twice: 2.0,
    Sabotage.clipped_by_tensor: 2**0.5,
}


@pytest.mark.parametrize("sabotage", LOUD)
def test_a_broken_mechanism_is_caught_by_guesses(sabotage: Sabotage) -> None:
    result = run(1024, 4, 4.0, 0.95, sabotage, seeded(5))
    assert result.judgement.epsilon_lower > 1.2 * result.epsilon_upper
    assert not result.holds


@pytest.mark.parametrize("sabotage", list(CLIPS))
def test_a_broken_clip_is_caught_by_its_measure(sabotage: Sabotage) -> None:
    """Guesses alone would not see twice the clip: they refute less than the honest claim."""
    result = run(1024, 4, 1.0, 0.95, sabotage, seeded(5))
    found = result.influence
    assert found.lower <= CLIPS[sabotage] <= found.upper
    assert found.lower > 1
    assert not result.holds
    if sabotage in (Sabotage.two_clips, Sabotage.counted_twice, Sabotage.clipped_by_tensor):
        assert result.judgement.epsilon_lower < result.epsilon_upper


def test_noise_that_repeats_hides_nothing_of_the_clip() -> None:
    """Subtracted, it leaves one clip for each release that the canaries were in."""
    found = run(256, 4, 4.0, 0.95, Sabotage.repeated_noise, seeded(5)).influence
    assert found.measured == pytest.approx(1.0, abs=0.02)
    assert found.upper - found.lower < 0.1


def test_every_sabotage_is_caught_by_one_of_the_two() -> None:
    assert {*LOUD, *CLIPS, Sabotage.none} == set(Sabotage)


@pytest.mark.parametrize("noise_multiplier", [1.0, 4.0])
def test_an_honest_example_moves_a_sum_by_one_clip(noise_multiplier: float) -> None:
    result = run(1024, 4, noise_multiplier, 0.95, Sabotage.none, seeded(11))
    found = result.influence
    assert found.lower <= 1 <= found.upper
    assert not result.in_vain
    error = noise_multiplier * 2 / np.sqrt(1024 * 4)
    assert found.upper - found.lower == pytest.approx(2 * 5 * error, rel=0.15)


def test_an_attack_that_moves_nothing_says_so() -> None:
    rng = np.random.default_rng(2)
    coins = rng.random(4000) < 0.5
    found = influence(rng.normal(size=4000), coins, 10.0)
    assert found.lower < 0 < found.upper < 0.1
    result = AttackResult(
        judgement=judge(rng.normal(size=4000), coins, 1e-5, 0.95),
        influence=found,
        epsilon_upper=2.0,
        delta=1e-5,
        releases=1,
    )
    assert result.in_vain


@pytest.mark.parametrize(
    ("changes", "canaries", "reason"),
    [
        ({}, 9, "parameter-out-of-range"),
        ({}, 0, "parameter-out-of-range"),
        ({"algorithm": "fedavg", "privacy": "none"}, 8, "no-privacy"),
    ],
)
def test_an_attack_that_cannot_be_made_is_refused(
    changes: dict[str, Any], canaries: int, reason: str
) -> None:
    """Sixteen numbers have room for eight canaries."""
    manifest = built(adapter=adapter((4,)), examples_max=32, **changes)
    with pytest.raises(AccountingError) as caught:
        run_attack(
            manifest,
            lambda model: [],
            canaries=canaries,
            releases=1,
            confidence=0.95,
            learning_rate=1.0,
            random_bytes=seeded(),
        )
    assert caught.value.reason == reason


def test_coins_that_all_fall_alike_are_refused() -> None:
    with pytest.raises(AccountingError) as caught:
        run(16, 1, 4.0, 0.95, Sabotage.none, lambda count: bytes(count))
    assert caught.value.reason == "coins-alike"


def test_the_command_prints_both_bounds_and_fails_when_the_promise_is_broken() -> None:
    command = ["audit", "attack", "--confidence", "0.99", "--format", "json"]
    honest = CliRunner().invoke(app, command)
    found = json.loads(honest.stdout)
    assert (honest.exit_code, found["holds"]) == (0, True)
    assert found["epsilon_lower"] < found["epsilon_upper"]
    assert found["influence_lower"] < 1 < found["influence_upper"]
    clip = CliRunner().invoke(app, [*command, "--sabotage", "two-clips"])
    assert (clip.exit_code, json.loads(clip.stdout)["holds"]) == (1, False)
    assert json.loads(clip.stdout)["influence_lower"] > 1
    broken = CliRunner().invoke(app, [*command, "--sabotage", "no-noise"])
    assert (broken.exit_code, json.loads(broken.stdout)["holds"]) == (1, False)
