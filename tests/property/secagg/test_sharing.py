"""Shamir sharing as laws over secrets, thresholds and sets of holders."""

from __future__ import annotations

import contextlib
import hashlib

from hypothesis import given
from hypothesis import strategies as st

from secagg import sharing
from secagg.errors import RemoteProtocolError
from secagg.secret import Secret

SECRETS = st.binary(min_size=32, max_size=32)


def source(seed: int):  # type: ignore[no-untyped-def]
    """Reproducible bytes, so that hypothesis can replay a failure."""
    drawn = 0

    def random_bytes(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.shake_256(f"{seed} {drawn}".encode()).digest(count)

    return random_bytes


@st.composite
def sharings(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """(threshold, holders, the opening ones in any order); at least threshold many open."""
    holders = draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=20, unique=True))
    threshold = draw(st.integers(1, len(holders)))
    opening = draw(st.permutations(holders))[: draw(st.integers(threshold, len(holders)))]
    return threshold, holders, opening


@given(SECRETS, sharings(), st.integers(0, 1000))
def test_enough_holders_open_the_secret(
    secret: bytes, parameters: tuple[int, list[int], list[int]], seed: int
) -> None:
    threshold, holders, opening = parameters
    shares = sharing.split(Secret(secret), threshold, holders, source(seed))
    assert list(shares) == holders
    for share in shares.values():
        sharing.check_share(share.reveal())
    some = {holder: shares[holder].reveal() for holder in opening}
    assert sharing.join(some, sharing.lagrange_at_zero(opening)).reveal() == secret


@given(st.integers(0, 2**255 - 1), st.integers(0, 2**255 - 1), sharings(), st.integers(0, 1000))
def test_sharing_is_linear(
    one: int, two: int, parameters: tuple[int, list[int], list[int]], seed: int
) -> None:
    """Shares of two secrets, added in the field, are shares of their sum."""
    threshold, holders, opening = parameters
    draws = source(seed)
    first, second = (
        sharing.split(Secret(value.to_bytes(32, "little")), threshold, holders, draws)
        for value in (one, two)
    )

    def added(holder: int) -> bytes:
        values = (int.from_bytes(part[holder].reveal(), "little") for part in (first, second))
        return (sum(values) % sharing.PRIME).to_bytes(33, "little")

    coefficients = sharing.lagrange_at_zero(opening)
    opened = sharing.join({holder: added(holder) for holder in opening}, coefficients)
    assert int.from_bytes(opened.reveal(), "little") == one + two


@given(SECRETS, sharings(), st.integers(0, 1000), st.data())
def test_one_wrong_share_never_opens_the_secret(
    secret: bytes, parameters: tuple[int, list[int], list[int]], seed: int, data: st.DataObject
) -> None:
    threshold, holders, opening = parameters
    shares = sharing.split(Secret(secret), threshold, holders, source(seed))
    some = {holder: shares[holder].reveal() for holder in opening}
    liar = data.draw(st.sampled_from(opening))
    lie = data.draw(st.integers(1, sharing.PRIME - 1))
    wrong = (int.from_bytes(some[liar], "little") + lie) % sharing.PRIME
    some[liar] = wrong.to_bytes(33, "little")
    opened = None
    with contextlib.suppress(RemoteProtocolError):
        opened = sharing.join(some, sharing.lagrange_at_zero(opening)).reveal()
    assert opened != secret


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20, unique=True))
def test_coefficients_add_up_to_one(holders: list[int]) -> None:
    """A constant polynomial opens to its constant."""
    total = sum(sharing.lagrange_at_zero(holders).values())
    assert total % sharing.PRIME == 1


@given(st.binary(max_size=40) | st.binary(min_size=32, max_size=32).map(lambda low: low + b"\1"))
def test_any_bytes_are_a_share_or_are_refused(share: bytes) -> None:
    refused = False
    try:
        sharing.check_share(share)
    except RemoteProtocolError:
        refused = True
    assert refused == (len(share) != 33 or int.from_bytes(share, "little") >= sharing.PRIME)
