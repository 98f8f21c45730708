"""From real numbers to integers of exactly bounded norm.

Stochastic rounding is unbiased; the integer clip then looks at the *rounded* vector, in exact
arithmetic, so that the L2 sensitivity holds by construction and no float is left in the proof.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dp.noise.stream import BitStream, RandomBytes
from secagg.errors import LocalProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK = 1 << 16
_SHRINK = 0.999
_TRIES_SLOW = 64  # from then on the vector shrinks by a tenth at a time
_TRIES_MAX = 1_000
_MEASURED_MAX = 1 << 20  # coordinates of a vector whose bias is measured
_ENCODED = 1 << 21  # coordinates that a measurement encodes in all, but at least and at most
_ENCODINGS_MIN, _ENCODINGS_MAX = 8, 1_000  # so many vectors


def squared_norm(values: NDArray[np.int64]) -> int | None:
    """The exact sum of squares; None if it is at least 2^61 (no clip is that large)."""
    if len(values) == 0:
        return 0
    low, high = int(values.min()), int(values.max())
    if max(-low, high) >= 1 << 31:
        return None
    # A float estimate with a relative error far below 1 decides whether int64 can hold the sum.
    floats = values.astype(np.float64)
    if float(floats @ floats) >= 2.0**61:
        return None
    return int(values @ values)


def round_stochastically(
    values: NDArray[np.float64], stream: BitStream, out: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Each value to one of its two neighbours, unbiased up to 2^-32.

    Args:
        values: float64[d], finite, absolute value below 2^52.
        stream: fresh coins, 32 bits for each coordinate.
    """
    result = np.empty(len(values), dtype=np.int64) if out is None else out
    for lo in range(0, len(values), _BLOCK):
        block = values[lo : lo + _BLOCK]
        floor = np.floor(block)
        threshold = np.multiply(block - floor, 2.0**32)
        result[lo : lo + _BLOCK] = floor
        result[lo : lo + _BLOCK] += stream.uint32(len(block)) < threshold
    return result


def to_units(
    values: NDArray[Any], scale: int, bound: int, random_bytes: RandomBytes
) -> NDArray[np.int64]:
    """Scale, clip, round, and clip the integers: exact squared L2 norm <= bound^2.

    A vector that is too long after rounding is rounded again, then shrunk by 0.1 % before every
    further try, each time with fresh coins.

    Args:
        values: float[d], finite.
        scale: integer units per real unit.
        bound: ``clip_units``, at most 2^30.
        random_bytes: cryptographically secure; asked once, for 32 bytes.

    Returns:
        int64[d].
    """
    real = np.asarray(values, dtype=np.float64)
    if not 1 <= bound <= 1 << 30:
        raise LocalProtocolError(
            "clip-out-of-range", "The integer clip is out of range.", found=bound
        )
    peak = float(np.max(np.abs(real), initial=0.0))
    if not math.isfinite(peak):
        raise LocalProtocolError("values-not-finite", "A value is not finite.")
    if peak == 0:
        return np.zeros(len(real), dtype=np.int64)
    target = _target(bound, len(real))
    relative = real / peak
    relative_norm = math.sqrt(float(relative @ relative))
    if peak * scale * relative_norm <= target:
        units = real * scale
    else:
        units = relative * (target / relative_norm)
    stream = BitStream(random_bytes)
    limit = bound * bound
    result = np.empty(len(real), dtype=np.int64)
    for attempt in range(_TRIES_MAX):
        if attempt >= 2:
            units = units * (_SHRINK if attempt < _TRIES_SLOW else 0.9)
        round_stochastically(units, stream, result)
        norm = squared_norm(result)
        if norm is not None and norm <= limit:
            return result
    return np.zeros(len(real), dtype=np.int64)


def _target(bound: int, length: int) -> float:
    """Norm to which a long vector is shortened before it is rounded, integer units.

    Rounding adds up to length / 4 to the squared norm in expectation: leave room for it, but never
    more than half, so that a coarse grid still carries a signal.
    """
    return math.sqrt(max(bound * bound - length / 4, bound * bound / 2))


def clip_bias(
    length: int, bound: int, random_bytes: RandomBytes, *, relative_norm: float = 1.0
) -> float:
    """Measured relative bias of :func:`to_units` on a vector about as long as the clip.

    The mean of many encodings, along the vector, over what a real clip would leave, less 1: what
    shortening before rounding, rounding again and shrinking cost together. Negative: encodings are
    too short. Where a vector is at most 0.999 of the clip, rounding alone is left, which is
    unbiased.

    Args:
        length: d. Beyond 2^20 nothing but the shortening is left of it, which is then returned.
        bound: ``clip_units``.
        random_bytes: asked for 32 bytes per encoding. The measurement's own standard error is at
            most 4e-5 on the grids of :func:`dp.noise.grid.scale_for`.
        relative_norm: length of the vector over the clip.
    """
    if length > _MEASURED_MAX:
        return _target(bound, length) / bound - 1
    # Values of both signs without a generator: the fractional parts of multiples of phi.
    vector = (np.arange(1, length + 1) * 0.6180339887498949) % 1.0 - 0.5
    vector /= math.sqrt(float(vector @ vector))
    encodings = max(_ENCODINGS_MIN, min(_ENCODINGS_MAX, _ENCODED // length))
    along = 0.0
    for _ in range(encodings):
        units = to_units(vector * (relative_norm * bound), 1, bound, random_bytes)
        along += float(units @ vector)
    return along / (encodings * bound * min(relative_norm, 1.0)) - 1
