"""Adaptive clipping: the clip follows a quantile of the norms, estimated in the same masked sum.

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping"
(NeurIPS 2021, arXiv 1905.03871): each unit also adds b - gamma, b = 1 if its norm is at most the
present clip C, and C moves geometrically,

    C <- C exp(-eta (sum of (b - gamma)) / n),

until a fraction gamma of the norms is at most C. Here n is the task's public denominator, so
nothing is counted: where fewer contribute, steps are smaller, and the fixed point is the same. The
sum carries noise like every other coordinate, so C is post-processing of a release.

The integer grid does not move. With C_0 the manifest's clip, a device multiplies by C_0 / C before
it encodes and the server by C / C_0 after it has decoded. Integer clip, noise, ring and cost are
the same whatever C is: a server that lies about C can only hurt learning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from dp.errors import MechanismError
from secagg.manifest import AdaptiveClip, Manifest, Segment

if TYPE_CHECKING:
    from numpy.typing import NDArray

BELOW = "below"
BELOW_SHARE = 8  # the bit's integer bound is an eighth of the vector's
_EXPONENT_MAX = 100  # a sum that wrapped around must not overflow
_DIGITS = 12  # significant digits that are kept of a clip


def adaptation(manifest: Manifest) -> AdaptiveClip:
    """The terms of a task whose clip adapts.

    Raises:
        MechanismError: ``clip-not-adaptive``.
    """
    terms = manifest.clip_adaptation
    if terms is None:
        raise MechanismError("clip-not-adaptive", "The task's clip does not adapt.")
    return terms


def adapts(manifest: Manifest, segment: Segment) -> bool:
    """Whether ``segment`` is the one that estimates the quantile."""
    return manifest.clip_adaptation is not None and segment.name == BELOW


def main_length(manifest: Manifest) -> int:
    """Coordinates without that of the quantile's estimate."""
    return manifest.data_length - (manifest.clip_adaptation is not None)


def first_clip(manifest: Manifest) -> float:
    """C_0, the clip of version 0 and of the integer grid."""
    return manifest.segments[0].clip


def checked_clip(manifest: Manifest, clip: float) -> float:
    """``clip``, if a version of this task can have it.

    Raises:
        MechanismError: ``clip-out-of-range``.
    """
    terms = adaptation(manifest)
    if not terms.clip_min <= clip <= terms.clip_max:  # false for NaN, too
        raise MechanismError(
            "clip-out-of-range",
            "No version of this task can have this clip.",
            expected=f"{terms.clip_min!r} to {terms.clip_max!r}",
            found=clip,
        )
    return clip


def below_units(manifest: Manifest, below: bool) -> int:
    """b - gamma on the grid of its segment, rounded towards zero: within ``clip_units``, exactly.

    Off by less than one unit, so the quantile that is met is within 1 / scale of gamma.
    """
    quantile, segment = adaptation(manifest).quantile, _below_segment(manifest)
    if below:
        return math.floor((1 - quantile) * segment.scale)
    return -math.floor(quantile * segment.scale)


def _below_segment(manifest: Manifest) -> Segment:
    return next(segment for segment in manifest.segments if segment.name == BELOW)


def scaled(
    manifest: Manifest, vector: NDArray[Any], clip: float
) -> tuple[NDArray[np.float64], int] | None:
    """One unit's vector times C_0 / C, not yet clipped, and its b - gamma in units.

    Args:
        vector: real[d].
        clip: C, as :func:`checked_clip` takes it.

    Returns:
        float64[d] and the integer; None for a vector that is not finite, which counts as zero in
        both.

    Raises:
        MechanismError: ``clip-out-of-range``.
    """
    factor = first_clip(manifest) / checked_clip(manifest, clip)
    real = np.asarray(vector, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        result = real * factor
        if not np.isfinite(result).all():
            return None
        norm = math.sqrt(float(real @ real))
    return result, below_units(manifest, norm <= clip)


def with_below(
    manifest: Manifest, values: Mapping[str, NDArray[Any]], clip: float
) -> dict[str, NDArray[Any]]:
    """What a device sends where it is the unit: its vector times C_0 / C, and ``below``, int64[1].

    Args:
        values: the algorithm's one segment, real[d].

    Raises:
        MechanismError: ``clip-out-of-range``.
    """
    segment = manifest.segments[0]
    found = scaled(manifest, values[segment.name], clip)
    vector, below = found if found is not None else (np.zeros(segment.length), 0)
    return {segment.name: vector, BELOW: np.array([below], dtype=np.int64)}


def next_clip(manifest: Manifest, clip: float, below_sum: int) -> float:
    """C of the next version, in [clip_min, clip_max], to 12 significant digits.

    Decimal arithmetic, which is correctly rounded: an auditor on another machine finds the same.

    Args:
        clip: C of the version that the cohort trained on.
        below_sum: unmasked sum of the segment, integer units, noise included.

    Raises:
        MechanismError: ``clip-out-of-range``, of ``clip``; ``denominator-missing``.
    """
    terms = adaptation(manifest)
    denominator = _denominator(manifest)
    with localcontext(Context(prec=40)):
        share = Decimal(below_sum) / (
            Decimal(_below_segment(manifest).scale) * Decimal(denominator)
        )
        exponent = -Decimal(terms.learning_rate) * share
        exponent = max(Decimal(-_EXPONENT_MAX), min(Decimal(_EXPONENT_MAX), exponent))
        moved = Decimal(checked_clip(manifest, clip)) * exponent.exp()
        rounded = float(f"{moved:.{_DIGITS - 1}e}")
    return min(max(rounded, terms.clip_min), terms.clip_max)


def below_sum_of(manifest: Manifest, sums: Mapping[str, NDArray[np.float64]]) -> int:
    """The segment's unmasked sum in integer units, from decoded sums (exact below 2^53)."""
    return round(float(sums[BELOW][0]) * _below_segment(manifest).scale)


def unscaled(
    manifest: Manifest, sums: Mapping[str, NDArray[np.float64]], clip: float
) -> dict[str, NDArray[np.float64]]:
    """Decoded sums in real units: times C / C_0, without ``below``."""
    factor = checked_clip(manifest, clip) / first_clip(manifest)
    return {name: values * factor for name, values in sums.items() if name != BELOW}


def below_deviation(manifest: Manifest, variance: int) -> float:
    """Standard deviation of the noise in (sum of b - gamma) / denominator, for one in the ring."""
    return math.sqrt(variance) / (_below_segment(manifest).scale * _denominator(manifest))


def _denominator(manifest: Manifest) -> float:
    training = manifest.training
    if training is None or not training.denominator > 0:
        raise MechanismError("denominator-missing", "The quantile needs a public denominator.")
    return training.denominator
