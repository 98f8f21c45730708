"""What a plan leaves of the signal: the formula, beside noise that is really drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dp.accounting.statements import headline, lines
from dp.contracts.spec import TaskSpec
from dp.errors import AccountingError
from dp.example_sum import ExampleSum
from dp.noise.sampling import add_skellam, poisson_batch
from dp.planning.gaussian import exact_epsilon
from dp.planning.signal import ENOUGH, HARDLY, ratios
from dp.planning.task import TaskPlan, plan_task
from dp.schedule import places_of
from secagg.errors import ConfigurationError, SecaggError
from secagg.lora.forms import sent_length
from secagg.manifest import Manifest
from tests.kits.lora_forms import adapter as of_form
from tests.kits.said import Case, refused
from tests.kits.tasks import adapter, built, seeded

DEVICES, ROUNDS, PERIOD = 10, 8, 4
LENGTH, EXAMPLES, MEAN = 1024, 400, 0.5
TARGET = {"population": DEVICES, "cohort": DEVICES, "rounds": ROUNDS, "epsilon": 8.0}
TARGET |= {"delta": 1e-5, "length": LENGTH, "dropout": 0.0, "unit": "example"}
TARGET |= {"examples": EXAMPLES, "signal": MEAN, "clip": 0.1}

MU = {8.0: 1.67, 4.0: 0.925}
TABLE = {  # b: scheduled, Poisson; docs/privacy.md
    (500, 8.0): {1: (7.5, 7.5), 4: (3.8, 1.9), 16: (1.9, 0.5), 64: (0.9, 0.1)},
    (15_000, 4.0): {1: (125, 125), 4: (63, 31), 16: (31, 7.8), 64: (16, 2.0)},
}


def planned(**changes: object) -> TaskPlan:
    return plan_task(**(TARGET | changes))


def manifest_of(plan: TaskPlan, length: int = LENGTH) -> Manifest:
    """By the validator of ``task create``, which derives everything again."""
    spec = msgspec.convert(plan.task, TaskSpec)
    return built(msgspec.structs.replace(spec, adapter=adapter((length,), 1)))


@pytest.mark.parametrize("case", TABLE)
def test_the_formula_is_that_of_the_page(case: tuple[int, float]) -> None:
    examples, epsilon = case
    assert exact_epsilon(1 / MU[epsilon], 1, 1e-5) == pytest.approx(epsilon, rel=5e-3)
    for period, shown in TABLE[case].items():
        for passes in (1, 3):
            noise = math.sqrt(passes) / MU[epsilon]
            step, whole, full, poisson = ratios(
                examples=examples,
                releases=passes * period,
                period=period,
                noise=noise,
                length=12_288,
                signal=1.0,
            )
            assert step == pytest.approx(noise * math.sqrt(12_288) * period / examples)
            assert (whole, poisson) == pytest.approx(shown, rel=0.03, abs=0.05)
            assert full == pytest.approx(TABLE[case][1][0], rel=0.02)


def test_a_plan_is_close_to_the_exact_gaussian() -> None:
    """The noise of ten devices, of which one may add none, by an accountant's bound."""
    plan = planned(passes=2)
    ideal = EXAMPLES * MU[8.0] * MEAN / math.sqrt(LENGTH * PERIOD)
    assert plan.signal is not None
    assert 0.85 * ideal < plan.signal.signal_over_noise < ideal
    assert (plan.period, plan.sums) == (PERIOD, 2)
    assert plan.noise_multiplier == pytest.approx(math.sqrt(2) / MU[8.0], rel=0.1)


def simulated(manifest: Manifest, batches: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
    """Noise over signal of the first step, signal over noise of all, from real sums and noise."""
    chance, coins = np.random.default_rng(1), seeded(1)
    common = np.zeros(LENGTH)
    common[0] = MEAN
    own = chance.standard_normal((EXAMPLES, LENGTH - 1))
    own *= math.sqrt(1 - MEAN**2) / np.linalg.norm(own, axis=1, keepdims=True)
    gradients = common + np.pad(own, ((0, 0), (1, 0)))  # ten times as long as the clip
    signals, noises = [], []
    for batch in batches:
        signal, noise = np.zeros((2, LENGTH), np.int64)
        for device in range(DEVICES):
            own_sum = ExampleSum(manifest, coins)
            for place in batch[batch % DEVICES == device]:
                own_sum.add(gradients[place].astype(np.float32))
            signal += own_sum.total
            assert manifest.noise is not None
            add_skellam(noise, manifest.noise.share_variance, coins)
        signals.append(signal)
        noises.append(noise)
    step = np.linalg.norm(noises[0]) / (len(batches[0]) * MEAN * manifest.segments[0].clip_units)
    return step, float(np.linalg.norm(np.sum(signals, 0)) / np.linalg.norm(np.sum(noises, 0)))


def test_real_noise_leaves_what_was_planned() -> None:
    """Scheduled, full and Poisson batches at one epsilon, each with the noise of its own plan."""
    plan, whole = planned(passes=2), planned()
    left, every = plan.signal, whole.signal
    assert left is not None
    assert every is not None
    assert (whole.period, whole.sums) == (1, ROUNDS)

    manifest, unscheduled = manifest_of(plan), manifest_of(whole)
    parts = [
        places_of(release % PERIOD, EXAMPLES, PERIOD, None, bytes(32)) for release in range(ROUNDS)
    ]
    step, found = simulated(manifest, parts)
    assert step == pytest.approx(left.step_noise_over_signal, rel=0.05)
    assert found == pytest.approx(left.signal_over_noise, rel=0.05)

    step, found = simulated(unscheduled, [np.arange(EXAMPLES)] * ROUNDS)
    assert step == pytest.approx(every.step_noise_over_signal, rel=0.05)
    assert found == pytest.approx(left.full_batches, rel=0.05)
    assert every.signal_over_noise == pytest.approx(left.full_batches, rel=0.01)

    drawn = [poisson_batch(EXAMPLES, 1 / PERIOD, seeded(release)) for release in range(ROUNDS)]
    _, found = simulated(unscheduled, drawn)
    assert found == pytest.approx(left.poisson_batches, rel=0.1)


def test_the_planned_task_is_accepted_and_needs_its_noise() -> None:
    plan = planned(passes=2)
    manifest = manifest_of(plan)
    assert manifest.training is not None
    assert manifest.training.denominator == EXAMPLES / PERIOD
    assert manifest.budget.max_epsilon == TARGET["epsilon"]
    assert headline(lines(manifest, ROUNDS)) == plan.epsilon <= TARGET["epsilon"]
    assert plan.task is not None
    less = msgspec.structs.replace(plan, task=plan.task | {"noise_multiplier": 0.8})
    with pytest.raises(ConfigurationError, match="budget-exceeded"):
        manifest_of(less)


def test_what_is_needed_is_enough_and_no_more() -> None:
    target = {"examples": 160, "signal": 0.1, "epsilon": 2.0, "rounds": 16, "passes": 1}
    plan = planned(**target)
    assert plan.signal is not None
    assert HARDLY < plan.signal.signal_over_noise < ENOUGH
    assert not plan.useless
    assert planned(**target | {"signal": 0.03}).useless
    needed = plan.signal.needed
    assert needed is not None
    assert needed.length is not None
    assert needed.epsilon is not None

    def reached(**changes: object) -> float:
        signal = planned(**(target | changes)).signal
        assert signal is not None
        return signal.signal_over_noise

    # Noise is planned in steps of 0.1 %.
    for changes in (
        {"examples": needed.examples},
        {"length": needed.length},
        {"epsilon": needed.epsilon},
    ):
        assert reached(**changes) == pytest.approx(ENOUGH, rel=0.02)
    assert needed.passes is None
    assert reached(passes=16) < ENOUGH

    more = target | {"examples": 400}
    signal = planned(**more).signal
    assert signal is not None
    assert signal.needed is not None
    passes = signal.needed.passes
    assert passes is not None
    assert planned(**more | {"passes": passes}).signal.needed is None
    assert planned(**more | {"passes": passes - 1}).signal.needed is not None
    assert planned(**target | {"examples": 4000}).signal.needed is None


def test_a_device_that_is_seldom_there_is_promised_no_less() -> None:
    """The epsilon is of a device in every cohort; what is learnt is of those in it alone."""
    every = planned(passes=2)
    seldom = planned(passes=2, population=100, examples=10 * EXAMPLES)
    assert (seldom.epsilon, seldom.sums) == (every.epsilon, every.sums)
    assert seldom.participations == pytest.approx(0.8)
    assert seldom.expected_epsilon < seldom.epsilon == every.expected_epsilon
    assert seldom.signal is not None
    assert every.signal is not None
    assert seldom.signal.signal_over_noise == pytest.approx(every.signal.signal_over_noise)
    gradients = seldom.signal.gradients_per_device
    assert gradients == pytest.approx(every.signal.gradients_per_device / 10)


def test_a_long_part_has_room() -> None:
    """A device with four times the average holds back nothing."""
    plan = planned(passes=2, examples=40_000)
    assert plan.task is not None
    assert plan.task["examples_max"] >= 4 * 40_000 / (DEVICES * PERIOD)
    assert manifest_of(plan).example_privacy.examples_max == plan.task["examples_max"]


RANGE, WRONG = AccountingError, ConfigurationError
REFUSED: dict[str, tuple[dict[str, object], str, object, object, type[SecaggError]]] = {
    "no noise reaches it": (
        {"epsilon": 1e-5, "rounds": 1000, "passes": 1000},
        "epsilon-unreachable",
        "epsilon <= 1e-05",
        1000,
        WRONG,
    ),
    "more parts than releases": (
        {"period": 9},
        "schedule-too-long",
        "period <= 8, the task's releases_max",
        9,
        WRONG,
    ),
    "more passes than releases": ({"passes": 9}, "parameter-out-of-range", "1 to 8", 9, RANGE),
    "no signal": ({"signal": 0.0}, "parameter-out-of-range", "1e-06 to 1", 0.0, RANGE),
    "parts of less than an example": (
        {"passes": 1, "examples": 79},
        "examples-too-few",
        "examples >= 80",
        79,
        WRONG,
    ),
    "passes and a period": (
        {"passes": 2, "period": 4},
        "passes-and-period",
        "one of both",
        "passes 2, period 4",
        WRONG,
    ),
    "examples of devices": (
        {"unit": "device"},
        "schedule-without-examples",
        "no examples, passes or period, or unit example",
        1,
        WRONG,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_was_expected_and_what_was_found(name: str) -> None:
    changes, reason, expected, found, error = REFUSED[name]
    refused(Case(lambda: planned(**changes), reason, expected, found), error)


@pytest.mark.parametrize("kind", ["rolora", "product"])
def test_a_form_is_refused_as_a_task_of_it_is(kind: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        planned(passes=2, adapter=of_form(kind))
    reasons = {"rolora": "schedule-of-factors", "product": "adapter-algorithm"}
    assert caught.value.reason == reasons[kind]
    if kind == "rolora":
        plan = planned(period=5, adapter=of_form(kind))
        assert (plan.period, plan.length) == (5, sent_length(of_form(kind)))
