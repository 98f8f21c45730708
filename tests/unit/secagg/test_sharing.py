"""Shamir shares open with enough holders, and only to what was shared."""

from __future__ import annotations

import itertools
import os

import pytest

from secagg import sharing
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.secret import Secret
from tests.kits.said import Case, refused


def opened(shares: dict[int, Secret], holders: list[int]) -> bytes:
    coefficients = sharing.lagrange_at_zero(holders)
    return sharing.join(
        {holder: shares[holder].reveal() for holder in holders}, coefficients
    ).reveal()


def probably_prime(number: int) -> bool:
    """Miller-Rabin with the first 40 odd bases."""
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        if not any((power := power * power % number) == number - 1 for _ in range(twos - 1)):
            return False
    return True


def test_the_field_is_the_smallest_that_holds_every_secret() -> None:
    assert sharing.PRIME == 2**256 + 297
    assert probably_prime(sharing.PRIME)
    assert not any(probably_prime(2**256 + gap) for gap in range(297))


def test_shares_are_values_of_the_polynomial() -> None:
    """By hand: secret 5, the one coefficient 7, so holder i has 5 + 7 * (i + 1)."""
    shares = sharing.split(
        Secret((5).to_bytes(32, "little")),
        2,
        [0, 1, 9],
        lambda count: (7).to_bytes(count, "little"),
    )
    found = {holder: int.from_bytes(share.reveal(), "little") for holder, share in shares.items()}
    assert found == {0: 12, 1: 19, 9: 75}
    assert {len(share) for share in shares.values()} == {33}


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\x80", bytes(range(32))])
def test_every_set_of_enough_holders_opens_the_secret(secret: bytes) -> None:
    shares = sharing.split(Secret(secret), 3, [0, 2, 3, 7, 100], os.urandom)
    for count in (3, 4, 5):
        for holders in itertools.combinations(shares, count):
            assert opened(shares, list(holders)) == secret
            assert opened(shares, list(reversed(holders))) == secret


def test_too_few_holders_learn_nothing() -> None:
    """For t - 1 shares and *any* candidate secret there is exactly one polynomial, so the shares
    speak for no candidate: shown here by building the missing share for a secret of our choice."""
    shares = sharing.split(Secret(b"\x01" * 32), 3, [0, 1, 2], os.urandom)
    other = int.from_bytes(b"\x02" * 32, "little")
    coefficients = sharing.lagrange_at_zero([0, 1, 2])
    known = sum(
        coefficients[holder] * int.from_bytes(shares[holder].reveal(), "little")
        for holder in (0, 1)
    )
    missing = (other - known) * pow(coefficients[2], -1, sharing.PRIME) % sharing.PRIME
    forged = {**shares, 2: Secret(missing.to_bytes(33, "little"))}
    assert opened(forged, [0, 1, 2]) == b"\x02" * 32


def test_fewer_shares_than_the_threshold_open_something_else() -> None:
    secret = b"\x01" * 32
    shares = sharing.split(Secret(secret), 3, [0, 1, 2], lambda count: b"\x05" * count)
    assert opened(shares, [0, 1]) != secret


def test_each_split_draws_new_coefficients() -> None:
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    first = sharing.split(Secret(bytes(32)), 5, range(8), source)
    second = sharing.split(Secret(bytes(32)), 5, range(8), source)
    assert sum(asked) == 2 * 4 * 48
    assert all(first[holder].reveal() != second[holder].reveal() for holder in range(8))


def test_coefficients_serve_all_secrets_of_the_same_holders() -> None:
    coefficients = sharing.lagrange_at_zero([4, 1, 8])
    for secret in (os.urandom(32), os.urandom(32)):
        shares = sharing.split(Secret(secret), 3, range(10), os.urandom)
        some = {holder: shares[holder].reveal() for holder in (1, 4, 8)}
        assert sharing.join(some, coefficients).reveal() == secret


@pytest.mark.parametrize(
    ("size", "threshold", "holders"),
    [
        (31, 1, [0]),
        (33, 1, [0]),
        (32, 0, [0, 1]),
        (32, 3, [0, 1]),
        (32, 1, []),
        (32, 2, [0, 0]),
        (32, 2, [0, 1, 1]),
        (32, 2, [-1, 0]),
        (32, 2, [-2, 0]),
    ],
)
def test_sharing_that_cannot_be_safe_is_refused(
    size: int, threshold: int, holders: list[int]
) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        sharing.split(Secret(bytes(size)), threshold, holders, os.urandom)
    assert caught.value.reason == "sharing-parameters"


@pytest.mark.parametrize("holders", [[], [1, 1], [-1, 2]])
def test_coefficients_need_distinct_places_in_the_roster(holders: list[int]) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        sharing.lagrange_at_zero(holders)
    assert caught.value.reason == "sharing-parameters"


def test_join_wants_exactly_the_holders_of_its_coefficients() -> None:
    shares = sharing.split(Secret(bytes(32)), 2, range(3), os.urandom)
    coefficients = sharing.lagrange_at_zero([0, 1])
    for holders in ([0], [0, 2], [0, 1, 2]):
        with pytest.raises(LocalProtocolError) as caught:
            sharing.join({holder: shares[holder].reveal() for holder in holders}, coefficients)
        assert caught.value.reason == "sharing-parameters"


MALFORMED = [
    b"",
    bytes(32),
    bytes(34),
    b"\xff" * 33,
    sharing.PRIME.to_bytes(33, "little"),
    (sharing.PRIME + 1).to_bytes(33, "little"),
]


@pytest.mark.parametrize("share", MALFORMED, ids=lambda share: f"{len(share)}-{share[:2].hex()}")
def test_a_share_outside_the_field_is_refused(share: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        sharing.check_share(share)
    assert caught.value.reason == "share-malformed"
    with pytest.raises(RemoteProtocolError) as caught:
        sharing.join({0: share}, sharing.lagrange_at_zero([0]))
    assert caught.value.reason == "share-malformed"


def test_the_largest_element_is_a_share() -> None:
    sharing.check_share((sharing.PRIME - 1).to_bytes(33, "little"))


@pytest.mark.parametrize("value", [2**256, 2**256 + 1, sharing.PRIME - 1])
def test_what_is_no_32_byte_secret_is_refused(value: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        sharing.join({0: value.to_bytes(33, "little")}, sharing.lagrange_at_zero([0]))
    assert caught.value.reason == "shares-inconsistent"


def test_shares_do_not_show() -> None:
    shares = sharing.split(Secret(b"\x07" * 32), 1, [0], os.urandom)
    assert repr(shares) == "{0: Secret(<33 bytes>)}"


SHORT = Secret(b"short")
REFUSED = {
    "a short secret": Case(
        lambda: sharing.split(SHORT, 2, [0, 1], os.urandom),
        "sharing-parameters",
        (32, 2),
        (5, 2),
        error=LocalProtocolError,
    ),
    "a holder twice": Case(
        lambda: sharing.lagrange_at_zero([1, 1]),
        "sharing-parameters",
        None,
        [1, 1],
        error=LocalProtocolError,
    ),
    "shares of others": Case(
        lambda: sharing.join({2: bytes(33), 1: bytes(33)}, {3: 1, 1: 1}),
        "sharing-parameters",
        [1, 3],
        [1, 2],
        error=LocalProtocolError,
    ),
    "a short share": Case(lambda: sharing.check_share(bytes(32)), "share-malformed", None, 32),
    "shares of no secret": Case(
        lambda: sharing.join({0: (1 << 256).to_bytes(33, "little")}, {0: 1}), "shares-inconsistent"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])
