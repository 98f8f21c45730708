"""From what a device computed to its payload, and from an unmasked sum back to numbers.

========  ==================================================================================
mode      what ``encode`` does with a segment
========  ==================================================================================
none, A   clip, scale, stochastic rounding, integer clip (local noise is in it)
B         rotation, clip, scale, stochastic rounding, integer clip, noise share
C         an :class:`ExampleSum`'s int64 total as it is, noise share
========  ==================================================================================

The share is drawn afresh for every call. A caller encodes once for each cohort, after its roster
has closed, and journals the masked payload.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dp.errors import MechanismError
from dp.noise.adaptive_clip import adapts
from dp.noise.discrete_gaussian import add_discrete_gaussian
from dp.noise.grid import examples_factor, has_ring_noise
from dp.noise.quantisation import to_units
from dp.noise.removable import add_parts, removable_part, share_levels
from dp.noise.rotation import rotate, rotate_back
from dp.noise.sampling import add_skellam
from dp.noise.stream import RandomBytes
from secagg.manifest import Manifest, Noise, Segment
from secagg.ring import Lanes, centred, split_checks, with_checks
from secagg.secret import Secret

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _rotates(manifest: Manifest) -> bool:
    return manifest.device_privacy is not None and not _sums_examples(manifest)


def _sums_examples(manifest: Manifest) -> bool:
    privacy = manifest.example_privacy
    return privacy is not None and privacy.mode == "distributed"


def encode(
    manifest: Manifest,
    values: Mapping[str, NDArray[Any]],
    *,
    rotation_seed: bytes,
    random_bytes: RandomBytes,
    masking_set_size: int = 0,
    noise_seeds: Sequence[Secret] = (),
) -> Lanes:
    """One device's payload, with check coordinates, not yet masked.

    Args:
        values: one array per segment of the manifest, flat, of its length; floats, and with
            distributed noise the int64 total of an :class:`ExampleSum`. With any noise a vector
            that is not finite counts as zero (a failure must not show). Where the clip adapts,
            already scaled for the version's clip, and ``below`` in units, int64[1]
            (:mod:`dp.noise.adaptive_clip`).
        rotation_seed: the cohort's ctx; public.
        random_bytes: cryptographically secure.
        masking_set_size: devices that owe a vector in this cohort, and
        noise_seeds: 32 bytes for each removable part of the noise, where the task has such parts.

    Returns:
        lanes[payload_length].

    Raises:
        MechanismError: ``segments-wrong``, ``segment-shape``, ``segment-type``,
            ``segment-bound``, ``noise-seeds`` or (without privacy) ``values-not-finite``.
    """
    names = [segment.name for segment in manifest.segments]
    if sorted(values) != sorted(names):
        raise MechanismError(
            "segments-wrong", "Not the manifest's segments.", expected=names, found=sorted(values)
        )
    data = np.concatenate(
        [
            _encode_segment(manifest, segment, values[segment.name], rotation_seed, random_bytes)
            for segment in manifest.segments
        ]
    )
    if has_ring_noise(manifest):
        if manifest.noise is None:
            raise MechanismError("noise-missing", "The manifest's mode needs noise in the ring.")
        _add_noise(
            manifest,
            manifest.noise,
            data,
            masking_set_size,
            noise_seeds,
            rotation_seed,
            random_bytes,
        )
    return with_checks(data, manifest.encoding.ring_bits, manifest.encoding.slice_length)


def _add_noise(
    manifest: Manifest,
    noise: Noise,
    data: NDArray[np.int64],
    masking_set_size: int,
    seeds: Sequence[Secret],
    ctx: bytes,
    random_bytes: RandomBytes,
) -> None:
    """The share of one device: the part that stays from ``random_bytes`` alone, then the others."""
    if len(seeds) != len(noise.removable_drops):
        raise MechanismError(
            "noise-seeds",
            "Each removable part of the noise has a seed of its own.",
            expected=len(noise.removable_drops),
            found=len(seeds),
        )
    if noise.mechanism == "discrete-gaussian":
        add_discrete_gaussian(data, noise.share_variance, random_bytes)
    elif not seeds:
        add_skellam(data, noise.share_variance, random_bytes)
    else:
        add_skellam(data, share_levels(noise, manifest.cohort, masking_set_size)[0], random_bytes)
        parts = [
            removable_part(manifest, masking_set_size, level, seed, ctx)
            for level, seed in enumerate(seeds)
        ]
        add_parts(data, parts)


def _encode_segment(
    manifest: Manifest,
    segment: Segment,
    value: NDArray[Any],
    rotation_seed: bytes,
    random_bytes: RandomBytes,
) -> NDArray[np.int64]:
    if value.shape != (segment.length,):
        raise MechanismError(
            "segment-shape",
            f"Segment {segment.name} has the wrong shape.",
            expected=(segment.length,),
            found=value.shape,
        )
    if _sums_examples(manifest) or adapts(manifest, segment):
        return _example_total(segment, value, examples_factor(manifest))
    if value.dtype.kind not in "fiu":
        raise MechanismError(
            "segment-type",
            f"Segment {segment.name} has the wrong type.",
            expected="real numbers",
            found=value.dtype.str,
        )
    real = value.astype(np.float64)
    if not np.isfinite(real).all():
        if manifest.example_privacy is None and manifest.device_privacy is None:
            raise MechanismError(
                "values-not-finite",
                f"Segment {segment.name} holds values that are not finite.",
                remedy="Lower the learning rate, or leave this device out.",
            )
        real = np.zeros(segment.length)
    if _rotates(manifest):
        real = rotate(real, rotation_seed, segment.name)
    return to_units(real, segment.scale, segment.clip_units, random_bytes)


def _example_total(segment: Segment, value: NDArray[Any], factor: int) -> NDArray[np.int64]:
    if value.dtype != np.int64:
        raise MechanismError(
            "segment-type",
            "A device sends the integer total of an ExampleSum, and below in units.",
            expected="int64",
            found=value.dtype.str,
        )
    bound = segment.clip_units * factor
    # Every coordinate of a sum of clipped vectors is within the sum of their L2 bounds.
    if int(value.max()) > bound or int(value.min()) < -bound:
        raise MechanismError(
            "segment-bound",
            "The total is larger than examples_max clipped examples can make it.",
            expected=bound,
            found=max(int(value.max()), -int(value.min())),
        )
    return value.copy()


def decode(
    manifest: Manifest, unmasked_payload: Lanes, *, survivors: int, rotation_seed: bytes
) -> dict[str, NDArray[np.float64]]:
    """The sums over the survivors, one float64 array per segment, in real units.

    Raises:
        MechanismError: ``check-coordinates`` if the payload is not a sum of ``survivors`` vectors.
    """
    encoding = manifest.encoding
    checks, lanes = split_checks(unmasked_payload, encoding.slice_length)
    if len(lanes) != manifest.data_length:
        raise MechanismError(
            "segment-shape",
            "The payload has the wrong length.",
            expected=manifest.data_length,
            found=len(lanes),
        )
    if (checks != survivors).any():
        raise MechanismError(
            "check-coordinates",
            "The unmasked payload is not a sum of that many vectors.",
            expected=survivors,
            found=sorted({int(c) for c in checks})[:4],
        )
    sums = centred(lanes, encoding.ring_bits)
    result, at = {}, 0
    for segment in manifest.segments:
        real = sums[at : at + segment.length] / segment.scale
        at += segment.length
        rotated = _rotates(manifest) and not adapts(manifest, segment)
        result[segment.name] = rotate_back(real, rotation_seed, segment.name) if rotated else real
    return result
