"""What an adaptive clip can be combined with, and the segment that it adds."""

from __future__ import annotations

import math

from dp.contracts.algorithms.registry import algorithm_of, names_where
from dp.contracts.rules import in_range, refuse
from dp.contracts.spec import AdaptiveClipSpec
from dp.noise.adaptive_clip import BELOW, BELOW_SHARE, first_clip
from dp.noise.grid import clip_units, has_ring_noise
from secagg.manifest import AdaptiveClip, Manifest, Segment

RANGE = 100.0  # how far the clip may go, up and down, where a spec does not say
_OPTIMISERS = frozenset({"sgd", "momentum"})
_FORMS = frozenset({"ffa-lora", "lora", "fedsvd"})


def terms_of(spec: AdaptiveClipSpec | None, clip: float) -> AdaptiveClip | None:
    """The manifest's terms for a task that begins with ``clip``; None: the clip is fixed."""
    if spec is None:
        return None
    in_range("adaptive_clip.quantile", spec.quantile, 0.01, 0.99)
    return AdaptiveClip(
        quantile=spec.quantile,
        learning_rate=spec.learning_rate,
        clip_min=clip / RANGE if spec.clip_min is None else spec.clip_min,
        clip_max=clip * RANGE if spec.clip_max is None else spec.clip_max,
    )


def below_segment(main: Segment, quantile: float) -> Segment:
    """b - gamma beside the vector, with an eighth of its integer bound.

    Noise has to cover both together: sqrt(1 + 1/64) times what the vector needs alone, 0.8 % more.
    The standard deviation in the sum of bits is then 8 max(gamma, 1 - gamma) times the noise
    multiplier (in Andrew et al. this is sigma_b, and z_Delta the vector's multiplier).
    """
    clip = max(quantile, 1 - quantile)
    scale = math.ceil(max(1, main.clip_units // BELOW_SHARE) / clip)
    return Segment(name=BELOW, length=1, clip=clip, scale=scale, clip_units=clip_units(clip, scale))


def noise_growth(manifest: Manifest) -> float:
    """Noise on the vector over what it would be with a fixed clip."""
    if manifest.clip_adaptation is None:
        return 1.0
    main, below = manifest.segments[0], manifest.segments[-1]
    return math.sqrt(1 + (below.clip_units / main.clip_units) ** 2)


def check_adaptive(manifest: Manifest) -> None:
    """Refuse a clip that cannot adapt here, or that adapts otherwise than it says.

    Raises:
        ConfigurationError: ``adaptive-clip-privacy``, ``adaptive-clip-algorithm``,
            ``adaptive-clip-optimiser``, ``adaptive-clip-form``, ``adaptive-clip-range``,
            ``adaptive-clip-segment``, ``denominator-missing`` or ``parameter-out-of-range``.
    """
    terms, training = manifest.clip_adaptation, manifest.training
    if terms is None:
        return
    _check_place(manifest)
    if training is None or not training.denominator > 0:
        refuse(
            "denominator-missing",
            "The quantile's estimate is divided by a public constant.",
            expected="> 0",
            found=None if training is None else training.denominator,
        )
    in_range("adaptive_clip.quantile", terms.quantile, 0.01, 0.99)
    in_range("adaptive_clip.learning_rate", terms.learning_rate, 0, 2, open_low=True)
    in_range("adaptive_clip.clip_min", terms.clip_min, 0, 1e12, open_low=True)
    in_range("adaptive_clip.clip_max", terms.clip_max, 0, 1e12, open_low=True)
    first = first_clip(manifest)
    if not terms.clip_min <= first <= terms.clip_max or terms.clip_max / terms.clip_min > 1e9:
        refuse(
            "adaptive-clip-range",
            "The clip must begin inside its range, and the range span at most a factor of 1e9.",
            expected=f"{terms.clip_min:g} to {terms.clip_max:g}",
            found=first,
        )
    expected = below_segment(manifest.segments[0], terms.quantile)
    if manifest.segments[-1] != expected:
        refuse(
            "adaptive-clip-segment",
            "The quantile's segment does not follow from the clip and the quantile.",
            expected=expected,
            found=manifest.segments[-1],
        )


def _check_place(manifest: Manifest) -> None:
    example, training, adapter = manifest.example_privacy, manifest.training, manifest.adapter
    local = example is not None and example.mode == "local"
    if local or not has_ring_noise(manifest):
        refuse(
            "adaptive-clip-privacy",
            "The quantile is a secret of the sum, which needs noise in the ring; and where each "
            "device adds its own to every step, a norm is mostly noise.",
            expected="privacy = 'distributed', or 'none' with device_noise_multiplier",
            found="local" if local else "no noise in the ring",
            remedy="Leave adaptive_clip out, or choose one of these modes.",
        )
    if not algorithm_of(manifest).clip_adapts:
        refuse(
            "adaptive-clip-algorithm",
            f"The clip of {manifest.algorithm} cannot adapt.",
            expected=names_where(lambda algorithm: algorithm.clip_adapts),
            found=manifest.algorithm,
            remedy="Use one of these, or leave adaptive_clip out.",
        )
    if training is not None and training.server_optimiser not in _OPTIMISERS:
        refuse(
            "adaptive-clip-optimiser",
            "The noise of a mean grows with the clip, and server_tau is fixed and public.",
            expected=sorted(_OPTIMISERS),
            found=training.server_optimiser,
            remedy="Use the plain optimiser or momentum, or a fixed clip.",
        )
    if adapter is not None and adapter.kind not in _FORMS:
        refuse(
            "adaptive-clip-form",
            f"With {adapter.kind} norms of several kinds would share one quantile.",
            expected=sorted(_FORMS),
            found=adapter.kind,
            remedy="Use one of these forms, or a fixed clip.",
        )
