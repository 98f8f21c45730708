"""What averaging algorithms share: one delta per device, weighted only without privacy."""

from __future__ import annotations

from collections.abc import Sequence

from dp.contracts.algorithms.declaration import ANY_OPTIMISER, TrainingAlgorithm
from dp.contracts.algorithms.local_steps import check_local
from dp.contracts.rules import adapter_length, check_segments, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest, TrainingManifest

LOSS_CLIP = 32.0  # nats per token; a uniform guess over 10^13 tokens
WIDE_UPDATE_CLIP = 64.0  # where the clip protects nothing


def has_privacy(manifest: Manifest) -> bool:
    return manifest.example_privacy is not None or manifest.device_privacy is not None


def _update(spec: TaskSpec, name: str, length: int) -> SegmentSpec:
    clip = spec.update_clip
    if clip is None:
        clip = 1.0 if spec.device_noise_multiplier else WIDE_UPDATE_CLIP
    return SegmentSpec(name=name, length=length, clip=clip)


def weighted_segments(
    spec: TaskSpec, name: str, length: int, noisy: bool
) -> tuple[SegmentSpec, ...]:
    """(name, length) with any privacy; else weight * it, weight (<= 1) and weight * mean loss."""
    update = _update(spec, name, length)
    if noisy:
        return (update,)
    return (
        update,
        SegmentSpec(name="weight", length=1, clip=1.0),
        SegmentSpec(name="loss", length=1, clip=LOSS_CLIP),
    )


def uniform_segments(spec: TaskSpec, length: int, noisy: bool) -> tuple[SegmentSpec, ...]:
    """("delta", length) with any privacy; else also the mean loss. Every device counts as one."""
    delta = _update(spec, "delta", length)
    return (delta,) if noisy else (delta, SegmentSpec(name="loss", length=1, clip=LOSS_CLIP))


class Averaging(TrainingAlgorithm):
    """Local steps at the devices, then the mean of their deltas."""

    default_privacy = "local"
    modes = frozenset(("local", "none"))
    optimisers = ANY_OPTIMISER
    clip_adapts = True
    schedules = True

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return weighted_segments(spec, "delta", length, noisy)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return float(spec.cohort.size_max) if noisy else 0.0

    def check_training(self, manifest: TrainingManifest) -> None:
        check_averaging(manifest)


def check_averaging(manifest: TrainingManifest, plain: Sequence[tuple[str, int]] = ()) -> None:
    """What holds for every averaging algorithm.

    Args:
        plain: further segments that the algorithm sends without privacy, by name and length.
    """
    length = adapter_length(manifest)
    training = manifest.training
    private = has_privacy(manifest)
    expected = [("delta", length)]
    if not private:
        expected += [("weight", 1), ("loss", 1), *plain]
    check_segments(manifest, expected)
    if private and training.weight_unit != 0:
        refuse(
            "weights-with-noise",
            "Hidden weights would make the mean more sensitive than the noise accounts for.",
            expected="weight_unit = 0",
            found=training.weight_unit,
            remedy="Use uniform weights.",
        )
    if private and not training.denominator > 0:
        refuse(
            "denominator-missing",
            "With privacy the sum is divided by a public constant.",
            expected="> 0",
            found=training.denominator,
        )
    check_local(manifest)
