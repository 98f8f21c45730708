"""Which tasks may have a schedule, and what the others are told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dp.contracts import BudgetSpec, TrainingSpec, check_manifest, parse_spec
from dp.contracts.units import protected_units
from dp.schedule import period_of
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from tests.kits.lora_forms import adapter as lora
from tests.kits.tasks import built, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=8)
LOCAL = {"privacy": "local", "noise_multiplier": 3.0}


def scheduled(period: int = 4, **changes: Any) -> Manifest:
    return built(**{"period": period, "budget": NO_LIMIT} | changes)


def refused(**changes: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        scheduled(**changes)
    return caught.value


ADMITTED: list[dict[str, Any]] = [
    {},
    {"sampling_rate": 1.0},
    {"period": 8},
    *[{"adapter": lora(kind)} for kind in ("lora", "ffa-lora", "fedsvd")],
    {"adapter": lora("rolora"), "period": 3},
    {"device_noise_multiplier": 1.4},
    {"mechanism": "discrete-gaussian"},
    {"algorithm": "zeroth-order"},
    {"training": TrainingSpec(server_optimiser="adam")},
    *[
        {"algorithm": name, **LOCAL}
        for name in ("fedavg", "fedavgm", "fedadam", "fednova", "fedbuff")
    ],
    {"algorithm": "fedprox", "training": TrainingSpec(proximal_mu=0.1), **LOCAL},
    {"algorithm": "scaffold", "training": TrainingSpec(population=9), **LOCAL},
    {"algorithm": "fedavg", "sampling_rate": 1.0, **LOCAL},
]


@pytest.mark.parametrize("changes", ADMITTED)
def test_tasks_that_may_have_a_schedule(changes: dict[str, Any]) -> None:
    manifest = scheduled(**changes)
    assert period_of(manifest) == changes.get("period", 4)
    check_manifest(manifest)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"algorithm": "fedavg", "privacy": "none"}, "schedule-without-examples"),
        (
            {"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 1.4},
            "schedule-without-examples",
        ),
        ({"algorithm": "evaluation"}, "schedule-without-examples"),
        ({"sampling_rate": 0.25}, "schedule-with-sampling"),
        ({"algorithm": "zeroth-order", "sampling_rate": 0.999}, "schedule-with-sampling"),
        ({"period": 9}, "schedule-too-long"),
        ({"adapter": lora("rolora"), "period": 2}, "schedule-of-factors"),
        ({"adapter": lora("product"), "algorithm": "fedavg", **LOCAL}, "product-example-privacy"),
        ({"adapter": lora("product")}, "adapter-algorithm"),
        ({"period": 0}, "parameter-out-of-range"),
        ({"period": -4}, "parameter-out-of-range"),
        ({"period": 1 << 20}, "parameter-out-of-range"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(changes: dict[str, Any], reason: str) -> None:
    error = refused(**changes)
    assert error.reason == reason
    assert error.expected is not None
    assert error.found is not None


@pytest.mark.parametrize("name", ["sum", "evaluation"])
def test_an_algorithm_whose_declaration_knows_no_parts_is_refused(name: str) -> None:
    """Whatever its privacy: a manifest that nobody built may say anything."""
    terms = TrainingSpec(weight_unit=9)
    base = (
        built(statistics(("x", 4, 1.0), device_noise_multiplier=4.0, budget=NO_LIMIT))
        if name == "sum"
        else built(algorithm=name, training=terms, budget=NO_LIMIT)
    )
    manifest = msgspec.structs.replace(base, example_privacy=scheduled().example_privacy)
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(manifest)
    assert caught.value.reason == "schedule-of-algorithm"
    assert (caught.value.expected, caught.value.found) == ("period unset", 4)


@pytest.mark.parametrize("period", [0, 1])
def test_a_period_that_divides_nothing_is_not_written(period: int) -> None:
    manifest = scheduled()
    privacy = msgspec.structs.replace(manifest.example_privacy, period=period)
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(msgspec.structs.replace(manifest, example_privacy=privacy))
    assert caught.value.reason == "parameter-out-of-range"
    assert built(period=1) == built()
    assert built(period=1).example_privacy.period is msgspec.UNSET


def test_the_whole_part_is_the_batch_unless_it_is_said_otherwise() -> None:
    assert scheduled().example_privacy.sampling_rate == 1.0
    assert built().example_privacy.sampling_rate == 0.25
    assert scheduled(algorithm="fedavg", **LOCAL).example_privacy.sampling_rate == 0.25
    assert scheduled(algorithm="fedavg", **LOCAL, sampling_rate=0.5).example_privacy == (
        msgspec.structs.replace(
            scheduled(algorithm="fedavg", **LOCAL).example_privacy, sampling_rate=0.5
        )
    )


def test_a_task_file_names_the_period() -> None:
    assert parse_spec('task = "demo"\nperiod = 4\n').period == 4
    assert parse_spec('task = "demo"\n').period == 1
    with pytest.raises(ConfigurationError, match="spec-malformed"):
        parse_spec('task = "demo"\nperiod = 2.5\n')


def test_delta_is_compared_with_the_examples_of_a_whole_pass() -> None:
    """Six devices, 24 examples of each part: 4 parts hold four times as many as one does."""
    (found,) = protected_units(scheduled())
    assert (found.expected, found.most) == (6 * 4 * 24, 6 * 4 * 256)
    assert "576 expected, at most 6144 in a pass of 4 sums" in found.text
    (found,) = protected_units(built(sampling_rate=1.0, budget=NO_LIMIT))
    assert (found.expected, found.most) == (6 * 24, 6 * 256)
    assert "in one sum" in found.text


def test_a_budget_is_that_of_the_participations() -> None:
    """At noise multiplier 1.4: four releases cost 6.66, and 2.98 where each example is in one."""
    enough = BudgetSpec(max_epsilon=2.98, releases_max=4)
    assert scheduled(budget=enough).budget.max_epsilon == 2.98
    with pytest.raises(ConfigurationError, match="budget-exceeded"):
        built(sampling_rate=1.0, budget=enough)
