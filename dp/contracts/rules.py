"""Rules that every algorithm shares, and how a rule is broken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NoReturn

from dp.contracts.derive import SHARE_VARIANCE_MAX, WRAP_LOG2_TARGET, wrap_log2
from dp.noise.adaptive_clip import BELOW
from dp.noise.discrete_gaussian import SIGMA_SQUARED_MAX
from dp.noise.grid import SCALE_MAX, clip_units, examples_factor, has_ring_noise, l2_squared_units
from dp.noise.removable import most_variance
from secagg import limits
from secagg.errors import ConfigurationError
from secagg.graph import parameters
from secagg.lora.forms import sent_length
from secagg.manifest import CohortRules, Manifest, Noise, Segment, TrainingManifest


def refuse(
    reason: str,
    message: str,
    *,
    expected: object = None,
    found: object = None,
    remedy: str | None = None,
) -> NoReturn:
    raise ConfigurationError(reason, message, expected=expected, found=found, remedy=remedy)


def in_range(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    reason: str = "parameter-out-of-range",
) -> None:
    """Refuse NaN, infinity and anything outside [low, high] (or ]low, high])."""
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        refuse(
            reason,
            f"{name} is out of range.",
            expected=f"{'>' if open_low else '>='} {low:g} and <= {high:g}",
            found=value,
        )


def adapter_length(manifest: TrainingManifest) -> int:
    """Numbers in the segment that the adapter's form sends."""
    return sent_length(manifest.adapter)


def check_cohort(manifest: Manifest) -> None:
    """Sizes, degree and threshold as :mod:`secagg.graph.parameters` admits them, and silent
    devices."""
    rules = manifest.cohort
    parameters.check_cohort(
        rules.size_min,
        rules.size_max,
        rules.survivors_min,
        rules.corrupt_max,
        rules.degree,
        rules.threshold,
    )
    if not 0 <= rules.silent_max < rules.size_min:
        refuse(
            "silent-max",
            "The number of silent devices does not fit the cohort.",
            expected=f"0 to {rules.size_min - 1}",
            found=rules.silent_max,
        )


def check_noise(manifest: Manifest) -> None:
    """Noise in the ring is there exactly when a mode needs it, and is enough for it."""
    rules, noise = manifest.cohort, manifest.noise
    if not has_ring_noise(manifest):
        if noise is not None:
            refuse("noise-unaccounted", "The task adds noise that no privacy mode accounts for.")
        return
    if rules.silent_max < max(1, rules.corrupt_max):
        refuse(
            "silent-max",
            "A participant knows its own noise, and a corrupt device adds none.",
            expected=f"silent_max >= {max(1, rules.corrupt_max)}",
            found=rules.silent_max,
        )
    honest = rules.survivors_min - rules.silent_max
    if honest < 1:
        refuse(
            "no-honest-noise",
            "No share of noise would be left to count on.",
            expected="survivors_min - silent_max >= 1",
            found=honest,
            remedy="Raise survivors_min.",
        )
    if noise is None:
        raise ConfigurationError("noise-missing", "The privacy mode needs noise in the ring.")
    if noise.honest_min != honest:
        refuse(
            "noise-honest-min",
            "The shares counted on do not follow from the cohort's rules.",
            expected=honest,
            found=noise.honest_min,
        )
    discrete = noise.mechanism == "discrete-gaussian"
    in_range(
        "share_variance",
        noise.share_variance,
        1,
        SIGMA_SQUARED_MAX if discrete else SHARE_VARIANCE_MAX,
        reason="noise-too-large" if discrete else "parameter-out-of-range",
    )
    check_removable(noise, rules)
    needed = needed_variance(manifest)
    if Fraction(noise.share_variance) * honest < needed:
        refuse(
            "noise-too-small",
            "The guaranteed noise is below what the manifest promises.",
            expected=f"share_variance * {honest} >= {math.ceil(needed)}",
            found=noise.share_variance * honest,
        )


def check_removable(noise: Noise, rules: CohortRules) -> None:
    """Every admissible number of drop-outs has a level, and what is left is Skellam noise."""
    drops = noise.removable_drops
    if not drops:
        return
    if noise.mechanism != "skellam":
        refuse(
            "removable-mechanism",
            "Only parts of Skellam noise can be removed: others do not add up to their own kind.",
            expected="skellam",
            found=noise.mechanism,
        )
    most = rules.size_max - rules.survivors_min
    ascending = all(low < high for low, high in zip((0, *drops), drops, strict=False))
    if not (ascending and drops[-1] == most and len(drops) <= limits.NOISE_LEVELS_MAX):
        refuse(
            "removable-drops",
            "The levels of removable noise do not cover the drop-outs that the task admits.",
            expected=f"at most {limits.NOISE_LEVELS_MAX} ascending numbers, the last {most}",
            found=list(drops),
        )


def needed_variance(manifest: Manifest) -> Fraction:
    """Total variance in the ring that the noise multipliers promise, integer units squared."""
    l2 = l2_squared_units(manifest.segments)
    needed = Fraction(0)
    example, device = manifest.example_privacy, manifest.device_privacy
    if example is not None and example.mode == "distributed":
        needed = Fraction(example.noise_multiplier) ** 2 * l2
    if device is not None:
        factor = examples_factor(manifest)
        needed = max(needed, Fraction(device.noise_multiplier) ** 2 * l2 * factor**2)
    return needed


def check_segments(manifest: Manifest, expected: Sequence[tuple[str, int]]) -> None:
    """Exactly these segments, in this order, and the quantile's last where the clip adapts."""
    expected = [*expected, *([(BELOW, 1)] if manifest.clip_adaptation else [])]
    found = [(segment.name, segment.length) for segment in manifest.segments]
    if found != list(expected):
        refuse(
            "segments-wrong",
            f"The segments are not those of {manifest.algorithm} in this privacy mode.",
            expected=expected,
            found=found,
        )


def check_joint_clip(manifest: Manifest) -> None:
    """With several segments a device's bound is that of all of them together."""
    device = manifest.device_privacy
    if device is None:
        return
    bound = math.sqrt(sum(segment.clip**2 for segment in manifest.segments))
    if not math.isclose(device.clip, bound, rel_tol=1e-9):
        refuse(
            "clip-mismatch",
            "The device's bound is not that of its segments together.",
            expected=bound,
            found=device.clip,
        )


def check_grid(segments: Sequence[Segment]) -> None:
    """Lengths, clips and scales are sane; clip_units = floor(clip * scale)."""
    names = [segment.name for segment in segments]
    if not segments or len(set(names)) != len(names) or not all(names):
        refuse("segments-wrong", "Segments need distinct names.", found=names)
    for segment in segments:
        if segment.length < 1:
            refuse("segments-wrong", f"Segment {segment.name} is empty.", found=segment.length)
        in_range(f"clip of {segment.name}", segment.clip, 0, 1e12, open_low=True)
        in_range(f"scale of {segment.name}", segment.scale, 1, SCALE_MAX)
        units = clip_units(segment.clip, segment.scale)
        if segment.clip_units != units:
            refuse(
                "clip-units-wrong",
                f"The integer clip of {segment.name} is not floor(clip * scale).",
                expected=units,
                found=segment.clip_units,
            )
    total = sum(segment.length for segment in segments)
    if total > limits.VECTOR_LENGTH_MAX:
        refuse(
            "vector-too-long",
            "The payload is too long.",
            expected=f"<= {limits.VECTOR_LENGTH_MAX} coordinates",
            found=total,
        )


def check_encoding(manifest: Manifest) -> None:
    encoding = manifest.encoding
    if not limits.RING_BITS_MIN <= encoding.ring_bits <= limits.RING_BITS_MAX:
        refuse(
            "ring-too-large" if encoding.ring_bits > limits.RING_BITS_MAX else "ring-too-small",
            "The ring's size is out of range.",
            expected=f"{limits.RING_BITS_MIN} to {limits.RING_BITS_MAX} bits",
            found=encoding.ring_bits,
        )
    if encoding.slice_length != limits.SLICE_LENGTH:
        refuse(
            "slice-length",
            "The slices have another length.",
            expected=limits.SLICE_LENGTH,
            found=encoding.slice_length,
        )
    noise = manifest.noise
    variance = most_variance(noise, manifest.cohort) if noise is not None else 0
    log2 = wrap_log2(
        encoding.ring_bits,
        manifest.segments,
        manifest.cohort,
        variance,
        examples_factor(manifest),
    )
    if log2 > WRAP_LOG2_TARGET:
        refuse(
            "ring-too-small",
            "A sum would wrap around too often.",
            expected=f"log2 of the probability <= {WRAP_LOG2_TARGET:g}",
            found=log2,
        )
    if not (math.isfinite(encoding.wrap_log2) and encoding.wrap_log2 >= log2 - 1e-6):
        refuse(
            "wrap-understated",
            "The stated probability of wrapping around is too good.",
            expected=f">= {log2}",
            found=encoding.wrap_log2,
        )
