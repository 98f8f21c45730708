"""The integer grid: scale, integer clip, and exact sensitivities that follow from them.

Everything that privacy depends on is an integer here, in exact arithmetic
(``fractions.Fraction`` of the configured floats).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from secagg.errors import ConfigurationError
from secagg.manifest import Manifest, Segment

UNITS_PER_ROOT = 16  # rounding then adds under 0.05 % to a clipped vector's L2 norm
FINE_UNITS_PER_ROOT = 1 << 13  # without noise nothing hides the rounding
UNITS_MIN = 1 << 10  # for short vectors
FINE_UNITS_MIN = 1 << 20
CLIP_UNITS_MAX = 1 << 30  # squared norms then fit int64 with room
SCALE_MAX = 1 << 52  # a float holds it exactly


def scale_for(clip: float, length: int, *, noisy: bool) -> int:
    """Integer units per real unit: the power of two that gives the clip >= 16 sqrt(length) units.

    Without noise 8,192 sqrt(length). At least 1 (large clips keep whole units).

    Raises:
        ConfigurationError: ``clip-out-of-range`` for a clip so small that no scale serves.
    """
    roots = UNITS_PER_ROOT if noisy else FINE_UNITS_PER_ROOT
    units = max(roots * math.sqrt(length), UNITS_MIN if noisy else FINE_UNITS_MIN)
    return max(1, 1 << max(0, math.ceil(math.log2(_ratio(units, clip)))))


def _ratio(units: float, clip: float) -> float:
    ratio = units / _possible(clip)
    if ratio > SCALE_MAX:
        raise ConfigurationError(
            "clip-out-of-range",
            "The clip is too small for the integer grid.",
            expected=f"at least {units / SCALE_MAX:.3g}",
            found=clip,
            remedy="Rescale the values.",
        )
    return ratio


def _possible(clip: float) -> float:
    if not 0 < clip < math.inf:
        raise ConfigurationError(
            "clip-out-of-range", "The clip is not positive and finite.", expected="> 0", found=clip
        )
    return clip


def clip_units(clip: float, scale: int) -> int:
    """floor(clip * scale), exactly.

    Raises:
        ConfigurationError: ``clip-out-of-range`` unless 1 <= units <= 2^30.
    """
    units = math.floor(Fraction(_possible(clip)) * scale)
    if not 1 <= units <= CLIP_UNITS_MAX:
        raise ConfigurationError(
            "clip-out-of-range",
            "The clip does not fit the integer grid.",
            expected=f"1 to {CLIP_UNITS_MAX} units",
            found=units,
            remedy="Rescale the values.",
        )
    return units


def equalised_scales(clips: Sequence[float], lengths: Sequence[int]) -> list[int]:
    """Scales that give all segments about the same clip in units, hence the same relative noise.

    Raises:
        ConfigurationError: as :func:`scale_for`.
    """
    units = max(UNITS_PER_ROOT * math.sqrt(max(lengths)), UNITS_MIN)
    return [max(1, math.ceil(_ratio(units, clip))) for clip in clips]


def l2_squared_units(segments: Sequence[Segment]) -> int:
    """Squared L2 bound of one contribution over all segments, integer units squared."""
    return sum(segment.clip_units**2 for segment in segments)


def l1_of(bound: int, length: int) -> int:
    """min(sqrt(length) D, D^2) for an integer vector of L2 norm at most D = ``bound``.

    The second form holds for integers (Agarwal, Kairouz, Liu 2021, section 3). Rounded up.
    """
    return min(math.isqrt(length * bound * bound - 1) + 1, bound * bound)


def l1_units(segments: Sequence[Segment], factor: int = 1) -> int:
    """L1 bound of a contribution of ``factor`` clipped vectors, integer units."""
    return sum(l1_of(segment.clip_units * factor, segment.length) for segment in segments)


def has_ring_noise(manifest: Manifest) -> bool:
    """Noise shares in the ring."""
    distributed = (
        manifest.example_privacy is not None and manifest.example_privacy.mode == "distributed"
    )
    return distributed or manifest.device_privacy is not None


def examples_factor(manifest: Manifest) -> int:
    """Clipped integer vectors that one device may sum: examples_max with distributed noise, else
    1."""
    privacy = manifest.example_privacy
    return privacy.examples_max if privacy is not None and privacy.mode == "distributed" else 1
