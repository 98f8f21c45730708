"""Manifests that lack a part, or contradict themselves, are refused; and what contracts suggest."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from dp.accounting.budget import UNITS, Account, charges_of
from dp.accounting.events import NonPrivateRelease
from dp.accounting.statements import local_step
from dp.contracts import BudgetSpec, CohortSpec, TrainingSpec, check_manifest, warnings
from dp.contracts.algorithms.registry import suggested
from dp.contracts.derive import derive_ring
from dp.contracts.known_noise import mean_deviation, mean_variance
from dp.errors import AccountingError
from dp.planning import task as planning
from secagg.errors import ConfigurationError, LocalProtocolError
from secagg.manifest import Manifest
from tests.kits.tasks import built, spec, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
BUFFER = CohortSpec(size_min=4, size_max=6, survivors_min=4, versions_back=4)
NEEDS: dict[str, dict[str, Any]] = {
    "fedsgd": {},
    "zeroth-order": {"training": TrainingSpec(directions=2)},
    "fedavg": {"privacy": "none"},
    "fedprox": {"privacy": "none", "training": TrainingSpec(proximal_mu=0.1)},
    "fedadam": {"privacy": "none"},
    "fednova": {"privacy": "none"},
    "scaffold": {"privacy": "none", "training": TrainingSpec(population=6)},
    "fedbuff": {"privacy": "none", "cohort": BUFFER},
    "evaluation": {"privacy": "none", "training": TrainingSpec(weight_unit=100)},
}


def task(algorithm: str) -> Manifest:
    return built(spec(**{"algorithm": algorithm, "budget": NO_LIMIT, **NEEDS[algorithm]}))


def replaced(part: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(part, **changes)


def refused(manifest: Manifest) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(manifest)
    return caught.value.reason


@pytest.mark.parametrize("algorithm", NEEDS)
def test_a_task_that_trains_needs_its_training_terms(algorithm: str) -> None:
    manifest = task(algorithm)
    check_manifest(manifest)
    assert refused(replaced(manifest, training=None)) == "training-missing"


@pytest.mark.parametrize("algorithm", NEEDS)
def test_a_task_that_trains_needs_its_adapter(algorithm: str) -> None:
    assert refused(replaced(task(algorithm), adapter=None)) == "adapter-missing"


@pytest.mark.parametrize("algorithm", ["fedsgd", "zeroth-order"])
def test_the_clip_of_an_example_is_that_of_the_segment(algorithm: str) -> None:
    manifest = task(algorithm)
    example = replaced(manifest.example_privacy, clip=manifest.example_privacy.clip / 2)
    assert refused(replaced(manifest, example_privacy=example)) == "clip-mismatch"


def test_the_bound_of_a_device_is_that_of_its_segments_together() -> None:
    manifest = built(
        statistics(("x", 8, 3.0), ("y", 1, 4.0), device_noise_multiplier=2.0, budget=NO_LIMIT)
    )
    assert manifest.device_privacy.clip == pytest.approx(5.0)
    for clip in (4.0, 5.0001, 7.0):
        device = replaced(manifest.device_privacy, clip=clip)
        assert refused(replaced(manifest, device_privacy=device)) == "clip-mismatch"


def test_suggestions_are_the_algorithms() -> None:
    assert suggested("fedadam", "none", 6) == {"server_learning_rate": 0.1}
    assert suggested("fedavgm", "none", 6) == {}
    assert suggested("scaffold", "none", 12) == {"population": 12}
    assert suggested("fedavg", "none", 6) == {}
    with pytest.raises(ConfigurationError) as caught:
        suggested("fedsdg", "none", 6)
    assert caught.value.reason == "algorithm-unknown"


def test_a_sum_that_no_ring_holds_is_refused() -> None:
    manifest = built(statistics(("x", 8, 1.0)))
    wide = replaced(manifest.segments[0], clip_units=1 << 61)
    with pytest.raises(ConfigurationError) as caught:
        derive_ring([wide], manifest.cohort, 0)
    assert (caught.value.reason, caught.value.expected) == ("ring-too-large", "<= 62 bits")
    bits, log2 = derive_ring(manifest.segments, manifest.cohort, 0)
    assert bits == manifest.encoding.ring_bits
    assert log2 <= -40


def test_known_noise_is_of_so_many_survivors() -> None:
    manifest = task("fedsgd")
    with pytest.raises(LocalProtocolError) as caught:
        mean_variance(manifest, 0)
    assert caught.value.reason == "survivors-missing"
    assert mean_variance(task("fedavg"), 4) == 0.0
    assert mean_deviation(task("fedavg")) == 0.0


def test_a_small_cohort_and_a_wide_range_are_warned_about() -> None:
    small = built(
        statistics(("x", 8, 1.0), cohort=CohortSpec(size_min=3, size_max=4, survivors_min=3))
    )
    assert any("each participant knows much" in text for text in warnings(small))
    wide = CohortSpec(size_min=4, size_max=60, survivors_min=4)
    loose = built(
        statistics(("x", 8, 1.0), device_noise_multiplier=1.0, cohort=wide, budget=NO_LIMIT)
    )
    assert any("times the noise variance" in text for text in warnings(loose))
    assert not any("times the noise variance" in text for text in warnings(task("fedsgd")))


def test_a_promise_without_privacy_is_refused() -> None:
    manifest = task("fedavg")
    assert refused(replaced(manifest, budget=replaced(manifest.budget, max_epsilon=8.0))) == (
        "budget-without-privacy"
    )
    check_manifest(manifest)
    assert [type(charge.event()) for charge in charges_of(manifest)] == [NonPrivateRelease] * 2
    spent = Account(delta=1e-5, max_epsilon=0.1).spend("a", manifest)
    assert [spent.epsilon(unit) for unit in UNITS] == [math.inf] * 2
    with pytest.raises(AccountingError, match="privacy-missing"):
        local_step(manifest)


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        planning.plan_task(
            population=100,
            cohort=10,
            rounds=10**6,
            epsilon=1e-3,
            delta=1e-9,
            length=64,
            unit="device",
        )
    assert (caught.value.reason, caught.value.found) == ("epsilon-unreachable", 10**6)
