"""The threshold keeps the two secrets of a device apart, and says what drop-outs remain."""

from __future__ import annotations

import time

import msgspec
import pytest

from secagg.errors import ConfigurationError
from secagg.graph import parameters
from secagg.graph.harary import Graph
from secagg.graph.parameters import check_cohort, dropouts_tolerated, threshold
from secagg.simulation import make_task
from tests.kits.said import Case, refused


@pytest.mark.parametrize("neighbours", range(1, 128))
def test_no_adversary_collects_both_secrets_of_a_device(neighbours: int) -> None:
    for corrupt in range(neighbours):
        needed = threshold(neighbours, corrupt)
        shares_it_can_get = (neighbours - corrupt) + 2 * corrupt
        assert 2 * needed > shares_it_can_get
        assert 2 * (needed - 1) <= shares_it_can_get, "and no smaller threshold would do"
        assert corrupt < needed <= neighbours


@pytest.mark.parametrize(
    ("neighbours", "corrupt"), [(0, 0), (1, 1), (5, 5), (5, 6), (5, -1), (-1, 0)]
)
def test_what_cannot_work_is_refused(neighbours: int, corrupt: int) -> None:
    with pytest.raises(ConfigurationError) as caught:
        threshold(neighbours, corrupt)
    assert caught.value.reason in ("threshold-unreachable", "corrupt-negative")


@pytest.mark.parametrize(
    ("neighbours", "corrupt", "dropouts"), [(5, 1, 1), (5, 0, 2), (1, 0, 0), (2, 1, 0), (99, 1, 48)]
)
def test_small_cohorts_feel_the_threshold(neighbours: int, corrupt: int, dropouts: int) -> None:
    assert dropouts_tolerated(neighbours + 1, corrupt) == dropouts


@pytest.mark.parametrize("size", range(2, 40))
def test_after_the_tolerated_dropouts_every_secret_still_opens(size: int) -> None:
    for corrupt in range(size - 1):
        needed = threshold(size - 1, corrupt)
        dropped = dropouts_tolerated(size, corrupt)
        survivors = size - dropped
        assert survivors - 1 >= needed, "other survivors open a survivor's seed"
        assert survivors - 2 < needed, "one more drop-out would be too many"


def test_sound_cohort_rules_pass() -> None:
    check_cohort(6, 6, 5, 1)
    check_cohort(2, 2, 2, 0)
    check_cohort(100, 128, 60, 10)
    check_cohort(1000, 1000, 900, 100, 138, 102)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ((1, 5, 1, 0), "cohort-size"),
        ((5, 4, 4, 0), "cohort-size"),
        ((100, 10_001, 90, 1), "cohort-too-large"),
        ((6, 6, 1, 1), "survivors-min"),
        ((6, 8, 7, 1), "survivors-min"),
        ((2, 2, 2, 1), "threshold-unreachable"),
        ((6, 6, 6, 5), "threshold-unreachable"),
        ((6, 6, 4, 1), "survivors-below-threshold"),
        ((6, 6, 5, -1), "corrupt-negative"),
    ],
)
def test_unsound_cohort_rules_are_refused_by_name(
    rules: tuple[int, int, int, int], reason: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_cohort(*rules)
    assert caught.value.reason == reason


_LARGE = (1000, 1000, 900, 100)


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ((*_LARGE, 0, 0), "degree-missing"),
        ((*_LARGE, 0, 102), "degree-missing"),
        ((6, 6, 5, 1, 4, 3), "degree-unused"),
        ((6, 6, 5, 1, 0, 3), "degree-unused"),
        ((*_LARGE, 137, 102), "degree-range"),
        ((*_LARGE, -2, 102), "degree-range"),
        ((*_LARGE, 514, 400), "degree-range"),
        ((*_LARGE, 138, 69), "threshold-range"),
        ((*_LARGE, 138, 139), "threshold-range"),
        ((*_LARGE, 138, 0), "threshold-range"),
        ((*_LARGE, 138, 101), "security-missed"),
        ((*_LARGE, 100, 75), "security-missed"),
        ((1000, 1000, 900, 110, 138, 102), "security-missed"),
        ((*_LARGE, 138, 106), "correctness-missed"),
        ((1000, 1000, 850, 100, 138, 102), "correctness-missed"),
        ((1000, 1000, 550, 100, 138, 102), "confirmations-unreachable"),
        ((900, 1800, 900, 0, 138, 102), "confirmations-unreachable"),
        ((1000, 1000, 900, 1000, 138, 102), "threshold-unreachable"),
        ((1000, 1000, 900, -1, 138, 102), "corrupt-negative"),
        ((100, 1000, 90, 90, 138, 102), "survivors-below-threshold"),
        ((500, 1000, 450, 100, 138, 102), "security-missed"),
    ],
)
def test_unsound_sparse_rules_are_refused_by_name(rules: tuple[int, ...], reason: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_cohort(*rules)
    assert caught.value.reason == reason


def test_the_check_of_the_largest_range_is_cheap() -> None:
    """A device makes it for every manifest: the tail at one size and one pair count."""
    start = time.process_time()
    check_cohort(9_000, 10_000, 8_000, 1_000, 214, 157)
    assert time.process_time() - start < 2, "CPU seconds; it takes about 0.02"


RULES = make_task(5, 5).manifest.cohort
RING = Graph(200, 10, bytes(32))


def on_ring(threshold: int) -> int:
    return parameters.threshold_on(RING, msgspec.structs.replace(RULES, threshold=threshold))


REFUSED = {
    "no threshold": Case(
        lambda: parameters.threshold(5, 5), "threshold-unreachable", "at most 5 shares", 6
    ),
    "a sparse threshold of half": Case(lambda: on_ring(5), "threshold-unreachable", "6 to 10", 5),
    "corrupt below zero": Case(lambda: parameters.threshold(5, -1), "corrupt-negative", None, -1),
    "a cohort of one": Case(
        lambda: parameters.check_cohort(1, 5, 2, 0),
        "cohort-size",
        "2 <= size_min <= size_max",
        (1, 5),
    ),
    "a roster too long": Case(
        lambda: parameters.check_cohort(5, 1 << 20, 4, 0),
        "cohort-too-large",
        f"at most {parameters.COHORT_MAX}",
        1 << 20,
    ),
    "more survivors than devices": Case(
        lambda: parameters.check_cohort(5, 6, 6, 0), "survivors-min", "2..5", 6
    ),
    "fewer survivors than shares": Case(
        lambda: parameters.check_cohort(6, 6, 4, 1),
        "survivors-below-threshold",
        "survivors_min >= 5",
        4,
    ),
    "a degree for nothing": Case(
        lambda: parameters.check_cohort(6, 6, 5, 1, 4, 3),
        "degree-unused",
        "degree = threshold = 0",
        (4, 3),
    ),
    "no degree": Case(
        lambda: parameters.check_cohort(6, 200, 5, 1),
        "degree-missing",
        "a degree and a threshold",
        (0, 0),
    ),
    "an odd degree": Case(
        lambda: parameters.check_cohort(6, 200, 5, 1, 11, 8),
        "degree-range",
        f"an even degree from 2 to {parameters.DEGREE_MAX}",
        11,
    ),
    "half of the degree": Case(
        lambda: parameters.check_cohort(6, 200, 5, 1, 10, 5), "threshold-range", "6..10", 5
    ),
    "too few to confirm": Case(
        lambda: parameters.check_confirmations(200, 104, 8),
        "confirmations-unreachable",
        "at least 105 survivors",
        104,
    ),
    "too many at risk of too few neighbours": Case(
        lambda: parameters.check_cohort(200, 200, 180, 10, 40, 30),
        "correctness-missed",
        "2^-20 at most",
        "2^-4.2",
    ),
    "too many corrupt": Case(
        lambda: parameters.check_cohort(200, 200, 180, 50, 20, 11),
        "security-missed",
        "2^-104 at most, 64 bits of it against chosen rosters",
        "2^0.0",
    ),
    "nobody honest": Case(
        lambda: parameters._check_sparse(150, 200, 150, 100, 60),
        "threshold-unreachable",
        "at most 149",
        150,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_cannot_be_is_refused_in_figures(name: str) -> None:
    refused(REFUSED[name], ConfigurationError)


def test_configurations_pass_at_their_bounds() -> None:
    parameters._check_degree(129, 2, 2)
    parameters._check_degree(129, parameters.DEGREE_MAX, parameters.DEGREE_MAX // 2 + 1)
    parameters.check_confirmations(200, 105, 8)
    parameters.check_sizes(2, 2, 2, 0)
    assert [on_ring(threshold) for threshold in (6, 10)] == [6, 10]
