"""What an operator hears of a task that cannot be: reason, and both figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from secagg.errors import ConfigurationError
from secagg.graph import parameters
from secagg.graph.harary import Graph
from secagg.simulation import make_task
from tests.kits.said import said

RULES = make_task(5, 5).manifest.cohort
RING = Graph(200, 10, bytes(32))


def on_ring(threshold: int) -> int:
    return parameters.threshold_on(RING, msgspec.structs.replace(RULES, threshold=threshold))


CONFIGURATIONS: dict[str, tuple[Callable[[], Any], str, object, object]] = {
    "no threshold": (
        lambda: parameters.threshold(5, 5),
        "threshold-unreachable",
        "at most 5 shares",
        6,
    ),
    "a sparse threshold of half": (
        lambda: on_ring(5),
        "threshold-unreachable",
        "6 to 10",
        5,
    ),
    "corrupt below zero": (lambda: parameters.threshold(5, -1), "corrupt-negative", None, -1),
    "a cohort of one": (
        lambda: parameters.check_cohort(1, 5, 2, 0),
        "cohort-size",
        "2 <= size_min <= size_max",
        (1, 5),
    ),
    "a roster too long": (
        lambda: parameters.check_cohort(5, 1 << 20, 4, 0),
        "cohort-too-large",
        f"at most {parameters.COHORT_MAX}",
        1 << 20,
    ),
    "more survivors than devices": (
        lambda: parameters.check_cohort(5, 6, 6, 0),
        "survivors-min",
        "2..5",
        6,
    ),
    "fewer survivors than shares": (
        lambda: parameters.check_cohort(6, 6, 4, 1),
        "survivors-below-threshold",
        "survivors_min >= 5",
        4,
    ),
    "a degree for nothing": (
        lambda: parameters.check_cohort(6, 6, 5, 1, 4, 3),
        "degree-unused",
        "degree = threshold = 0",
        (4, 3),
    ),
    "no degree": (
        lambda: parameters.check_cohort(6, 200, 5, 1),
        "degree-missing",
        "a degree and a threshold",
        (0, 0),
    ),
    "an odd degree": (
        lambda: parameters.check_cohort(6, 200, 5, 1, 11, 8),
        "degree-range",
        f"an even degree from 2 to {parameters.DEGREE_MAX}",
        11,
    ),
    "half of the degree": (
        lambda: parameters.check_cohort(6, 200, 5, 1, 10, 5),
        "threshold-range",
        "6..10",
        5,
    ),
    "too few to confirm": (
        lambda: parameters.check_confirmations(200, 104, 8),
        "confirmations-unreachable",
        "at least 105 survivors",
        104,
    ),
    "too many at risk of too few neighbours": (
        lambda: parameters.check_cohort(200, 200, 180, 10, 40, 30),
        "correctness-missed",
        "2^-20 at most",
        "2^-4.2",
    ),
    "too many corrupt": (
        lambda: parameters.check_cohort(200, 200, 180, 50, 20, 11),
        "security-missed",
        "2^-104 at most, 64 bits of it against chosen rosters",
        "2^0.0",
    ),
    "nobody honest": (
        lambda: parameters._check_sparse(150, 200, 150, 100, 60),
        "threshold-unreachable",
        "at most 149",
        150,
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_task_that_cannot_be_is_refused_in_figures(name: str) -> None:
    call, *expected = CONFIGURATIONS[name]
    with pytest.raises(ConfigurationError) as caught:
        call()
    assert list(said(caught.value)) == expected


def test_configurations_pass_at_their_bounds() -> None:
    parameters._check_degree(129, 2, 2)
    parameters._check_degree(129, parameters.DEGREE_MAX, parameters.DEGREE_MAX // 2 + 1)
    parameters.check_confirmations(200, 105, 8)
    parameters.check_sizes(2, 2, 2, 0)
    assert [on_ring(threshold) for threshold in (6, 10)] == [6, 10]
