"""From what a device computed to its payload, and from an opened sum back to numbers.

========  ==================================================================================
mode      what ``encode`` does with a segment
========  ==================================================================================
none, A   clip, scale, stochastic rounding, integer clip (in mode A the noise is already in it)
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

from dp.accounting.statements import local_step
from dp.errors import MechanismError
from dp.noise.adaptive_clip import BELOW, adapts, checked_clip, main_length, scaled
from dp.noise.discrete_gaussian import add_discrete_gaussian
from dp.noise.grid import clip_units, examples_factor, has_ring_noise, scale_for
from dp.noise.quantisation import to_units
from dp.noise.removable import add_parts, removable_part, share_levels
from dp.noise.rotation import rotate, rotate_back
from dp.noise.sampling import add_skellam, skellam
from dp.noise.stream import RandomBytes
from secagg.manifest import ExamplePrivacy, Manifest, Noise, Segment
from secagg.ring import Lanes, centred, split_checks, with_checks
from secagg.secret import Secret

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _rotates(manifest: Manifest) -> bool:
    return manifest.device_privacy is not None and not _sums_examples(manifest)


def _sums_examples(manifest: Manifest) -> bool:
    privacy = manifest.example_privacy
    return privacy is not None and privacy.mode == "distributed"


class ExampleSum:
    """The sum of integer-clipped example gradients: sensitivity exactly ``clip_units``.

    In mode C its ``total`` is what :func:`encode` takes as ``values["gradient"]``; in mode A
    :func:`noisy_total` turns it into a DP-SGD step. Where the clip adapts, ``below`` is the sum of
    b - gamma over the same examples, in units, each within the ``clip_units`` of its segment.

    Args:
        manifest: with example-level privacy.
        random_bytes: cryptographically secure; asked for 32 bytes per example.
        clip: of the model's version, where the clip adapts.

    Raises:
        MechanismError: ``privacy-missing``; ``clip-missing``, ``clip-out-of-range`` where the clip
            adapts.
    """

    def __init__(
        self, manifest: Manifest, random_bytes: RandomBytes, clip: float | None = None
    ) -> None:
        privacy = manifest.example_privacy
        if privacy is None:
            raise MechanismError(
                "privacy-missing", "Without example-level privacy no example is clipped."
            )
        self._random_bytes = random_bytes
        self._scale, self._bound = _example_grid(manifest, privacy)
        self._examples_max = privacy.examples_max if privacy.mode == "distributed" else 1 << 31
        self._manifest, self._clip = manifest, clip
        if manifest.clip_adaptation is not None:
            if clip is None:
                raise MechanismError("clip-missing", "The clip of the model's version is missing.")
            checked_clip(manifest, clip)
        self.count = 0
        self.below = 0
        self.total: NDArray[np.int64] = np.zeros(main_length(manifest), dtype=np.int64)

    def add(self, gradient: NDArray[Any]) -> None:
        """Quantise, clip and add one example's gradient, float[d].

        A gradient that is not finite counts as zero. Beyond ``examples_max`` nothing is added: a
        batch that long is an event whose probability delta pays for (``examples_held_max``).
        """
        if gradient.shape != self.total.shape:
            raise MechanismError(
                "segment-shape",
                "The gradient has the wrong shape.",
                expected=self.total.shape,
                found=gradient.shape,
            )
        self.count += 1
        if self.count > self._examples_max or not np.isfinite(gradient).all():
            return
        if self._manifest.clip_adaptation is not None and self._clip is not None:
            found = scaled(self._manifest, gradient, self._clip)
            if found is None:
                return
            gradient, below = found
            self.below += below
        self.total += to_units(gradient, self._scale, self._bound, self._random_bytes)

    def values(self, name: str = "gradient") -> dict[str, NDArray[np.int64]]:
        """What a device contributes in mode C: the total as ``name``, and ``below``, if any."""
        if self._manifest.clip_adaptation is None:
            return {name: self.total}
        return {name: self.total, BELOW: np.array([self.below], dtype=np.int64)}


def _example_grid(manifest: Manifest, privacy: ExamplePrivacy) -> tuple[int, int]:
    if privacy.mode == "distributed":
        segment = manifest.segments[0]
        return segment.scale, segment.clip_units
    scale = scale_for(privacy.clip, manifest.data_length, noisy=True)
    return scale, clip_units(privacy.clip, scale)


def noisy_total(
    manifest: Manifest, total: NDArray[np.int64], random_bytes: RandomBytes
) -> NDArray[np.float64]:
    """Mode A: the sum of one local step's clipped gradients plus exact Skellam noise.

    Args:
        total: an :class:`ExampleSum`'s, int64[d].

    Returns:
        float64[d], real units; standard deviation noise_multiplier * clip.
    """
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "local":
        raise MechanismError("privacy-mode", "Local noise belongs to privacy = 'local'.")
    scale, _ = _example_grid(manifest, privacy)
    return (total + skellam(len(total), local_step(manifest).variance, random_bytes)) / scale


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
        values: one array per segment of the manifest, flat, of its length; floats, and in mode C
            the int64 total of an :class:`ExampleSum`. With any privacy mode a vector that is not
            finite counts as zero (a failure must not show). Where the clip adapts, already scaled
            for the version's clip, and ``below`` in units, int64[1]
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
            "In mode C a device sends the integer total of an ExampleSum; below is in units.",
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
    manifest: Manifest, opened_payload: Lanes, *, survivors: int, rotation_seed: bytes
) -> dict[str, NDArray[np.float64]]:
    """The sums over the survivors, one float64 array per segment, in real units.

    Raises:
        MechanismError: ``check-coordinates`` if the payload is not a sum of ``survivors`` vectors.
    """
    encoding = manifest.encoding
    checks, lanes = split_checks(opened_payload, encoding.slice_length)
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
            "The opened payload is not a sum of that many vectors.",
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
