"""Federated evaluation: loss, accuracy and counts of the model as it is, and no step.

A device sends sums over at most E = ``weight_unit`` of its examples, each divided by E: of the
losses (each cut at ``LOSS_CLIP``), of the shares of answer tokens that are predicted right, and of
ones. So every segment is bounded by its clip whatever the data are, and the ratios of the sums are
the means over all examples. With device-level privacy all three are noised and accounted.
"""

from __future__ import annotations

from dp.contracts.algorithms.averaging import LOSS_CLIP
from dp.contracts.algorithms.declaration import TrainingAlgorithm
from dp.contracts.rules import check_segments, in_range, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import TrainingManifest

_CLIPS = (("loss", LOSS_CLIP), ("accuracy", 1.0), ("count", 1.0))


class Evaluation(TrainingAlgorithm):
    default_privacy = "none"
    modes = frozenset(("none",))
    moves_model = False
    joint_clip = True
    local_steps = False
    forward_only = True

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return tuple(SegmentSpec(name=name, length=1, clip=clip) for name, clip in _CLIPS)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return 0.0

    def check_training(self, manifest: TrainingManifest) -> None:
        check_segments(manifest, [(name, 1) for name, _ in _CLIPS])
        for segment, (name, clip) in zip(manifest.segments, _CLIPS, strict=True):
            if segment.clip != clip:
                refuse(
                    "clip-mismatch",
                    f"The bound of {name} follows from its definition.",
                    expected=clip,
                    found=segment.clip,
                )
        training = manifest.training
        in_range("weight_unit", training.weight_unit, 1, 1 << 40)
        if manifest.example_privacy is not None:
            refuse(
                "privacy-mode",
                "An evaluation clips and noises what a whole device says.",
                expected="none",
                found=manifest.example_privacy.mode,
                remedy="Set device_noise_multiplier for privacy of a whole device.",
            )
        if training.server_optimiser != "sgd":
            refuse(
                "step-unused",
                "An evaluation takes no step that an optimiser could shape.",
                expected="sgd",
                found=training.server_optimiser,
                remedy="Leave server_optimiser out.",
            )
