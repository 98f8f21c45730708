"""Noise that survives drop-outs without the excess: removable parts of a device's share.

Each device adds its share in parts: a base part that stays, and one part for each level of
drop-outs t_1 < ... < t_L. Once it is known who survived, the parts that are not needed are taken
off the sum. The idea is that of Dordis (Jiang, Wang, Chen, EuroSys 2024, "XNoise"); each removable
part here comes from a 256-bit seed of its own, which is revealed only together with the sum.

With n devices in the masking set, c that do not count, and the target V = ``share_variance`` times
``honest_min``, a share that is needed with up to t drop-outs has variance

    v(t) = ceil(V / (n - c - t)),  t at most n - ``survivors_min``;

the base part has v(0), part k has v(t_k) - v(t_(k-1)). With more than t_(k-1) and at most t_k
drop-outs the parts above k are removed, v(t_k) stays of each survivor, and u survivors guarantee
(u - c) v(t_k) >= V. Skellam noise is closed under addition, so what stays is exactly Skellam.

A part is drawn slice by slice (``secagg.limits.SLICE_LENGTH`` data coordinates, as masks are
opened), each slice from its own place in the seed's AES-256-CTR stream: any slice can be taken off
alone, and the memory beside the sum is one slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dp.errors import AccountingError, MechanismError
from dp.noise.sampling import draw_skellam
from dp.noise.stream import BitStream
from secagg.context import removed_levels
from secagg.hashing import derive
from secagg.limits import SEED_BYTES, SLICE_LENGTH
from secagg.manifest import CohortRules, Manifest, Noise
from secagg.ring import Lanes, centred, ring_mask
from secagg.secret import Secret

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 3  # of a task that does not say otherwise


def drop_levels(most: int, levels: int = LEVELS) -> tuple[int, ...]:
    """Evenly spaced levels of drop-outs up to ``most``: t_1 < ... < t_L = ``most``."""
    return tuple(sorted({-(-most * k // levels) for k in range(1, levels + 1)} - {0}))


def _bounds(noise: Noise, rules: CohortRules, masking_set_size: int) -> tuple[int, ...]:
    """Most drop-outs under which each of the shares v(0), v(t_1), ... suffices."""
    if not rules.survivors_min <= masking_set_size <= rules.size_max:
        raise AccountingError(
            "masking-set-size",
            "No masking set of this size can be unmasked.",
            expected=(rules.survivors_min, rules.size_max),
            found=masking_set_size,
        )
    spare = masking_set_size - rules.survivors_min
    return tuple(min(drops, spare) for drops in (0, *noise.removable_drops))


def share_levels(noise: Noise, rules: CohortRules, masking_set_size: int) -> tuple[int, ...]:
    """Variances v(0), v(t_1), ..., v(t_L) of what stays of one share; ascending, integer units
    squared. Without removable parts the one share.

    Raises:
        AccountingError: ``masking-set-size``.
    """
    bounds = _bounds(noise, rules, masking_set_size)
    if not noise.removable_drops:
        return (noise.share_variance,)
    target, counted = noise.share_variance * noise.honest_min, masking_set_size - rules.silent_max
    return tuple(-(-target // (counted - drops)) for drops in bounds)


def kept_share(noise: Noise, rules: CohortRules, masking_set_size: int, survivors: int) -> int:
    """Variance of what stays of each survivor's share once the parts above are removed."""
    removed = removed_levels(noise.removable_drops, masking_set_size, survivors)
    return share_levels(noise, rules, masking_set_size)[len(noise.removable_drops) - len(removed)]


def most_variance(noise: Noise, rules: CohortRules) -> int:
    """The largest variance that an unmasked sum can carry, every survivor's share counted."""
    if not noise.removable_drops:
        return noise.share_variance * rules.size_max
    most = 0
    for members in range(rules.survivors_min, rules.size_max + 1):
        bounds = _bounds(noise, rules, members)
        shares = share_levels(noise, rules, members)
        fewest_lost = (0, *(drops + 1 for drops in bounds[:-1]))
        for lost, drops, share in zip(fewest_lost, bounds, shares, strict=True):
            if lost <= drops:
                most = max(most, (members - lost) * share)
    return most


@dataclass(frozen=True)
class Removed:
    """What was taken off a sum: its variance per coordinate, and its scalar product with the rest
    (the sum of what :func:`remove_parts` returned)."""

    variance: int
    product: float


@dataclass(frozen=True)
class RemovablePart:
    """One part of one device's noise: the key of its stream and its variance."""

    key: Secret
    variance: int


def removable_part(
    manifest: Manifest, masking_set_size: int, level: int, seed: Secret, ctx: bytes
) -> RemovablePart:
    """The part of ``level`` (from 0, as in ``secagg.context.removed_levels``) that ``seed`` gives.

    Raises:
        MechanismError: ``noise-level`` or ``seed-size``.
        AccountingError: ``masking-set-size``.
    """
    noise = manifest.noise
    if noise is None or not 0 <= level < len(noise.removable_drops):
        raise MechanismError("noise-level", "The task has no such part of noise.", found=level)
    if len(seed) != SEED_BYTES:
        raise MechanismError(
            "seed-size", "A seed has 256 bits.", expected=SEED_BYTES, found=len(seed)
        )
    shares = share_levels(noise, manifest.cohort, masking_set_size)
    key = derive(seed.reveal(), "removable noise", level.to_bytes(8, "little"), salt=ctx)
    return RemovablePart(Secret(key), shares[level + 1] - shares[level])


def _draw(values: NDArray[np.int64], part: RemovablePart, index: int) -> None:
    """Add the part's noise of slice ``index`` to that slice's data coordinates."""
    if part.variance:
        draw_skellam(values, part.variance, BitStream(lambda _: part.key.reveal(), place=index))


def add_parts(data: NDArray[np.int64], parts: Sequence[RemovablePart]) -> None:
    """Add every part's noise to a device's data coordinates, in place.

    Args:
        data: int64[d], all data coordinates.
    """
    for index, start in enumerate(range(0, len(data), SLICE_LENGTH)):
        for part in parts:
            _draw(data[start : start + SLICE_LENGTH], part, index)


def remove_parts(
    payload: Lanes,
    parts: Sequence[RemovablePart],
    ring_bits: int,
    lo: int,
    hi: int,
    *,
    first: int = 0,
) -> float:
    """Take the noise of all parts off payload coordinates ``lo`` to ``hi``, in place.

    Exact: the integers that :func:`add_parts` added are subtracted in the ring. Ranges that do not
    overlap may be done at the same time.

    Args:
        payload: lanes of the *whole* unmasked payload, check coordinates included; or of its end
            from slice ``first`` on.
        lo: a multiple of ``SLICE_LENGTH + 1``.

    Returns:
        The scalar product of what was taken off with what is left, over these coordinates: about
        0, unless some of it had never been added (:mod:`dp.noise_meter`).

    Raises:
        MechanismError: ``noise-slice``.
    """
    stride = SLICE_LENGTH + 1
    if lo % stride or not 0 <= lo <= hi <= len(payload) or (hi % stride and hi != len(payload)):
        raise MechanismError(
            "noise-slice",
            "Noise is removed from whole slices.",
            expected=f"multiples of {stride}, up to {len(payload)}",
            found=(lo, hi),
        )
    mask, product = ring_mask(ring_bits), 0.0
    for start in range(lo, hi, stride):
        lanes = payload[start + 1 : min(start + stride, hi)]
        noise = np.zeros(len(lanes), np.int64)
        for part in parts:
            _draw(noise, part, first + start // stride)
        np.subtract(lanes, noise.astype(lanes.dtype), out=lanes)
        np.bitwise_and(lanes, mask, out=lanes)
        product += float(noise.astype(np.float64) @ centred(lanes, ring_bits))
    return product
