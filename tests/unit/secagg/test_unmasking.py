"""Opening in slices gives the same as opening at once, and a wrong sum is seen."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from secagg import masks, ring
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.secret import Secret
from secagg.simulation import make_task
from secagg.unmasking import UnmaskingPlan, check_sum, unmask_slice
from tests.kits.said import Case, refused

LENGTH = 300


@pytest.mark.parametrize("bits", [8, 16, 21, 32, 40, 62])
@pytest.mark.parametrize("cuts", [(), (1,), (7, 8, 150), (64, 128, 256)])
def test_slices_open_to_the_masked_sum(bits: int, cuts: tuple[int, ...]) -> None:
    terms = tuple(masks.MaskTerm(Secret(bytes([n] * 32)), 1 if n % 2 else -1) for n in range(5))
    data = np.arange(LENGTH, dtype=np.int64) - 100
    plain = ring.with_checks(data, bits, LENGTH)
    masked = plain.copy()
    masks.apply_masks(masked, terms, bits)
    plan = UnmaskingPlan(bits, len(plain), tuple(term.negated() for term in terms))
    edges = (0, *cuts, len(plain))
    for lo, hi in pairwise(edges):
        unmask_slice(plan, masked, lo, hi)
    assert np.array_equal(masked, plain)


@pytest.mark.parametrize(("lo", "hi"), [(-1, 4), (5, 4), (0, 302)])
def test_a_slice_outside_the_sum_is_a_misuse(lo: int, hi: int) -> None:
    plan = UnmaskingPlan(32, 301, ())
    with pytest.raises(LocalProtocolError, match="opening-slice"):
        unmask_slice(plan, np.zeros(301, "<u4"), lo, hi)
    with pytest.raises(LocalProtocolError, match="opening-slice"):
        unmask_slice(plan, np.zeros(300, "<u4"), 0, 4)


def test_every_slice_has_a_check_coordinate_of_its_own() -> None:
    manifest = make_task(3, 10, slice_length=4).manifest
    total = np.zeros(13, "<u4")
    for _ in range(3):
        ring.add_into(total, ring.with_checks(np.arange(10), 32, 4), 32)
    check_sum(manifest, total, 3)
    for place in (0, 5, 10):
        wrong = total.copy()
        wrong[place] += 1
        with pytest.raises(RemoteProtocolError, match="check-coordinates"):
            check_sum(manifest, wrong, 3)
    with pytest.raises(RemoteProtocolError, match="check-coordinates"):
        check_sum(manifest, total, 2)


def test_the_plan_does_not_print_its_keys() -> None:
    plan = UnmaskingPlan(32, 3, (masks.MaskTerm(Secret(b"k" * 32), 1),))
    assert "kkkk" not in repr(plan)


def wrong_sum() -> None:
    manifest = make_task(3, 10, slice_length=4).manifest
    total = np.zeros(13, "<u4")
    total[::5] = 3, 2, 7
    check_sum(manifest, total, 3)


REFUSED = {
    "a slice beyond the sum": Case(
        lambda: unmask_slice(UnmaskingPlan(32, 3, ()), np.zeros(3, "<u4"), 1, 4),
        "opening-slice",
        3,
        (3, 1, 4),
        error=LocalProtocolError,
    ),
    "wrong check coordinates": Case(wrong_sum, "check-coordinates", 3, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])


def test_the_sum_says_how_many_check_coordinates_are_wrong() -> None:
    with pytest.raises(RemoteProtocolError, match="2 of 3 check coordinates"):
        wrong_sum()


def test_an_empty_slice_opens_to_nothing() -> None:
    for at in (0, 3):
        unmask_slice(UnmaskingPlan(32, 3, ()), np.zeros(3, "<u4"), at, at)
