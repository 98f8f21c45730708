"""Scheduled batches: what the rule promises, for every list, period and task."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp.errors import AccountingError
from dp.schedule import (
    most_sums,
    part_of,
    participations,
    period_of,
    places_of,
    schedule_of,
)
from secagg.manifest import decode_manifest, encode_manifest
from tests.kits.tasks import built

SEEDS = st.binary(min_size=32, max_size=32)
PERIODS = st.integers(1, 9)


@given(places=st.integers(0, 60), period=PERIODS, most=st.integers(0, 8), seed=SEEDS)
def test_parts_divide_the_places_that_serve_and_none_exceeds_its_bound(
    places: int, period: int, most: int, seed: bytes
) -> None:
    parts = [places_of(part, places, period, most, seed).tolist() for part in range(period)]
    assert sorted(place for part in parts for place in part) == list(
        range(min(places, period * most))
    )
    for number, part in enumerate(parts):
        assert len(part) <= most
        assert part == sorted(part)
        assert all(part_of(place, period, seed) == number for place in part)


@given(places=st.integers(0, 40), more=st.integers(0, 40), period=PERIODS, seed=SEEDS)
def test_a_place_never_changes_its_part_when_the_list_grows(
    places: int, more: int, period: int, seed: bytes
) -> None:
    for part in range(period):
        before = set(places_of(part, places, period, 100, seed).tolist())
        after = set(places_of(part, places + more, period, 100, seed).tolist())
        assert {place for place in after if place < places} == before


@given(charges=st.integers(0, 200), period=PERIODS, place=st.integers(0, 50), seed=SEEDS)
def test_no_example_is_in_more_sums_than_are_counted(
    charges: int, period: int, place: int, seed: bytes
) -> None:
    part = part_of(place, period, seed)
    sums = sum(count % period == part for count in range(charges))
    assert sums <= participations(charges, period)
    assert max(Counter(count % period for count in range(charges)).values(), default=0) == (
        participations(charges, period)
    )


@given(places=st.integers(0, 60), period=PERIODS, seed=SEEDS)
def test_without_a_bound_every_place_serves(places: int, period: int, seed: bytes) -> None:
    parts = [places_of(part, places, period, None, seed).tolist() for part in range(period)]
    assert sorted(place for part in parts for place in part) == list(range(places))


@given(parts=st.lists(st.integers(0, 4)), others=st.integers(0, 30), mine=st.integers(0, 4))
def test_no_example_is_in_more_sums_of_known_and_unknown_parts(
    parts: list[int], others: int, mine: int
) -> None:
    """Unknown ones are of one device in a row, wherever it began."""
    most = most_sums(parts, others, 5)
    for start in range(5):
        unknown = [(start + count) % 5 for count in range(others)]
        assert (parts + unknown).count(mine) <= most
    assert most_sums([], others, 5) == participations(others, 5)


def test_every_order_of_a_block_comes_as_often() -> None:
    """Chi-square with 5 degrees of freedom exceeds 20.5 with probability 0.001; the seeds are
    fixed."""
    seen = Counter(
        tuple(part_of(place, 3, seed.to_bytes(32)) for place in range(3)) for seed in range(6_000)
    )
    assert len(seen) == 6
    assert sum((count - 1_000) ** 2 / 1_000 for count in seen.values()) < 20.5


def test_tasks_and_blocks_divide_differently() -> None:
    def orders(seed: bytes) -> list[tuple[int, ...]]:
        parts = [part_of(place, 4, seed) for place in range(400)]
        return [tuple(parts[at : at + 4]) for at in range(0, 400, 4)]

    assert len(set(orders(bytes(32)))) > 20
    assert orders(bytes(32)) != orders(bytes([1]) * 32)


def test_known_parts() -> None:
    """A change of the rule moves examples to other parts in the middle of a task."""
    assert [part_of(place, 4, bytes(32)) for place in range(12)] == [
        2,
        1,
        3,
        0,
        2,
        0,
        1,
        3,
        1,
        2,
        0,
        3,
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda: participations(-1, 2),
        lambda: participations(1, 0),
        lambda: part_of(-1, 2, bytes(32)),
        lambda: part_of(0, 0, bytes(32)),
        lambda: places_of(2, 5, 2, 5, bytes(32)),
        lambda: places_of(-1, 5, 2, 5, bytes(32)),
        lambda: places_of(0, 5, 0, 5, bytes(32)),
    ],
)
def test_impossible_schedules_are_refused(call: object) -> None:
    with pytest.raises(AccountingError, match="parameter-out-of-range"):
        call()  # type: ignore[operator]


def test_a_manifest_without_a_schedule_is_written_as_before() -> None:
    manifest = built()
    assert manifest.example_privacy is not None
    assert period_of(manifest) == 1
    assert "period" not in msgspec.msgpack.decode(encode_manifest(manifest))["example_privacy"]
    scheduled = msgspec.structs.replace(
        manifest, example_privacy=msgspec.structs.replace(manifest.example_privacy, period=4)
    )
    assert period_of(scheduled) == 4
    assert decode_manifest(encode_manifest(scheduled)) == scheduled


def test_a_schedule_is_named_by_the_whole_manifest() -> None:
    one = built()
    other = msgspec.structs.replace(one, task_key=bytes(32))
    again = decode_manifest(encode_manifest(one))
    assert schedule_of(one) == schedule_of(again) != schedule_of(other)
