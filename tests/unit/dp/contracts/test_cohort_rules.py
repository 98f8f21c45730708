"""Degree and threshold of large cohorts: filled in at creation, proved again by every device."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dp.contracts import BudgetSpec, CohortSpec, check_manifest
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest, decode_manifest, encode_manifest
from tests.kits.tasks import built

NO_LIMIT = BudgetSpec(max_epsilon=None)
LARGE = CohortSpec(size_min=1000, size_max=1000, survivors_min=900, corrupt_max=100)


def large(cohort: CohortSpec = LARGE) -> Manifest:
    return built(cohort=cohort, budget=NO_LIMIT)


def with_rules(manifest: Manifest, **changes: Any) -> Manifest:
    rules = msgspec.structs.replace(manifest.cohort, **changes)
    return msgspec.structs.replace(manifest, cohort=rules)


def test_the_least_degree_is_filled_in_and_passes_the_devices_check() -> None:
    manifest = large()
    assert (manifest.cohort.degree, manifest.cohort.threshold) == (138, 102)
    check_manifest(decode_manifest(encode_manifest(manifest)))


def test_small_cohorts_keep_the_complete_graph() -> None:
    rules = large(CohortSpec(size_min=100, size_max=128, survivors_min=90, corrupt_max=10)).cohort
    assert (rules.degree, rules.threshold) == (0, 0)


def test_a_range_across_the_boundary_has_a_degree_for_its_sparse_sizes() -> None:
    manifest = large(CohortSpec(size_min=100, size_max=180, survivors_min=97, corrupt_max=5))
    assert 0 < manifest.cohort.degree < 128
    check_manifest(manifest)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"degree": 0, "threshold": 0}, "degree-missing"),
        ({"degree": 600}, "degree-range"),
        ({"degree": 137}, "degree-range"),
        ({"threshold": 60}, "threshold-range"),
        ({"threshold": 101}, "security-missed"),
        ({"degree": 60, "threshold": 45}, "security-missed"),
        ({"corrupt_max": 120, "silent_max": 120}, "security-missed"),
        ({"threshold": 110}, "correctness-missed"),
        ({"survivors_min": 550}, "confirmations-unreachable"),
    ],
)
def test_a_device_refuses_a_graph_that_is_too_weak(changes: dict[str, int], reason: str) -> None:
    """The constants are the device's own: nothing in the manifest says how many bits count."""
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(with_rules(large(), **changes))
    assert caught.value.reason == reason


def test_a_device_refuses_a_degree_where_none_is_needed() -> None:
    manifest = built(budget=NO_LIMIT)
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(with_rules(manifest, degree=4, threshold=3))
    assert caught.value.reason == "degree-unused"


@pytest.mark.parametrize(
    ("cohort", "reason"),
    [
        (CohortSpec(size_min=6, size_max=500, survivors_min=4, corrupt_max=-1), "corrupt-negative"),
        (CohortSpec(size_min=200, size_max=500, survivors_min=180), "confirmations-unreachable"),
        (
            CohortSpec(size_min=2_000, size_max=2_000, survivors_min=1_500, corrupt_max=500),
            "degree-unreachable",
        ),
        (CohortSpec(size_min=0, size_max=500, survivors_min=0), "cohort-size"),
    ],
)
def test_no_task_is_created_for_what_no_graph_serves(cohort: CohortSpec, reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        large(cohort)
    assert caught.value.reason == reason
