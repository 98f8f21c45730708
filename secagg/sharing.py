"""Shamir sharing (CACM 1979) of 256-bit secrets over GF(p), p = 2^256 + 297.

p is the smallest prime above 2^256, so any 32 bytes are a field element. Evaluation points are
distinct and non-zero by construction: roster index + 1. Secrets that are opened by the same set of
holders share their Lagrange coefficients.

Big-integer arithmetic in Python is not constant-time; ``threat_model.md`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.limits import SEED_BYTES, SHARE_BYTES
from secagg.secret import Secret

PRIME = (1 << 256) + 297


def point(roster_index: int) -> int:
    """The evaluation point of a roster index."""
    return roster_index + 1


def split(
    secret: Secret,
    threshold: int,
    holders: Sequence[int],
    random_bytes: Callable[[int], bytes],
) -> dict[int, Secret]:
    """Share a 32-byte secret among roster indices; any ``threshold`` shares open it.

    Returns:
        roster index -> share (33 bytes, little-endian).

    Raises:
        LocalProtocolError: ``sharing-parameters``.
    """
    _check_holders(holders)
    if len(secret) != SEED_BYTES or not 1 <= threshold <= len(holders):
        raise LocalProtocolError(
            "sharing-parameters",
            "A secret of 32 bytes is shared among at least `threshold` holders.",
            expected=(SEED_BYTES, threshold),
            found=(len(secret), len(holders)),
        )
    # 48 random bytes mod p are within 2^-127 of uniform.
    coefficients = [int.from_bytes(secret.reveal(), "little")] + [
        int.from_bytes(random_bytes(48), "little") % PRIME for _ in range(threshold - 1)
    ]
    coefficients.reverse()
    shares = {}
    for holder in holders:
        x, value = point(holder), 0
        for coefficient in coefficients:
            value = (value * x + coefficient) % PRIME
        shares[holder] = Secret(value.to_bytes(SHARE_BYTES, "little"))
    return shares


def _check_holders(holders: Sequence[int]) -> None:
    """Distinct and not negative: index -1 would be point 0, whose share is the secret itself."""
    if not holders or len(set(holders)) != len(holders) or min(holders) < 0:
        raise LocalProtocolError(
            "sharing-parameters",
            "Holders are distinct roster indices, counted from zero.",
            found=list(holders),
        )


def check_share(share: bytes) -> None:
    """Raise RemoteProtocolError ``share-malformed`` unless the bytes are a field element."""
    if len(share) != SHARE_BYTES or int.from_bytes(share, "little") >= PRIME:
        raise RemoteProtocolError(
            "share-malformed", "A share is a field element of 33 bytes.", found=len(share)
        )


def lagrange_at_zero(holders: Sequence[int]) -> dict[int, int]:
    """Coefficients that open any secret from the shares of exactly these roster indices.

    The coefficient of x is the product of all points over x * prod(other - x): one product, and one
    modular inversion for all of them.
    """
    _check_holders(holders)
    points = [point(holder) for holder in holders]
    product = 1
    for x in points:
        product = product * x % PRIME
    denominators = []
    for x in points:
        denominator = x
        for other in points:
            if other != x:
                denominator = denominator * (other - x) % PRIME
        denominators.append(denominator)
    inverses = _invert_all(denominators)
    return {
        holder: product * inverse % PRIME for holder, inverse in zip(holders, inverses, strict=True)
    }


def _invert_all(values: Sequence[int]) -> list[int]:
    prefix = [1]
    for value in values:
        prefix.append(prefix[-1] * value % PRIME)
    inverse = pow(prefix[-1], -1, PRIME)
    inverses = [0] * len(values)
    for i in range(len(values) - 1, -1, -1):
        inverses[i] = prefix[i] * inverse % PRIME
        inverse = inverse * values[i] % PRIME
    return inverses


def join(shares: Mapping[int, bytes], coefficients: Mapping[int, int]) -> Secret:
    """Open a secret from exactly the shares that ``coefficients`` were made for.

    Raises:
        RemoteProtocolError: ``share-malformed``, or ``shares-inconsistent`` when the result is
            not a 32-byte secret (some dealer or holder lied).
    """
    if shares.keys() != coefficients.keys():
        raise LocalProtocolError(
            "sharing-parameters",
            "Shares and coefficients belong to different holders.",
            expected=sorted(coefficients),
            found=sorted(shares),
        )
    total = 0
    for holder, share in shares.items():
        check_share(share)
        total += int.from_bytes(share, "little") * coefficients[holder]
    total %= PRIME
    if total >> 256:
        raise RemoteProtocolError("shares-inconsistent", "The shares do not open to a secret.")
    return Secret(total.to_bytes(SEED_BYTES, "little"))
