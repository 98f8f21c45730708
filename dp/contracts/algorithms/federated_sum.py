"""Federated statistics: sums of bounded vectors, without any model."""

from __future__ import annotations

from dp.contracts.algorithms.declaration import Algorithm
from dp.contracts.rules import refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest


class FederatedSum(Algorithm):
    default_privacy = "none"
    modes = frozenset(("none",))
    moves_model = False
    joint_clip = True
    local_steps = False

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return spec.segments

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return 0.0

    def check(self, manifest: Manifest) -> None:
        if manifest.example_privacy is not None:
            refuse(
                "privacy-mode",
                "A statistic has no examples that the platform could clip.",
                expected="none",
                found=manifest.example_privacy.mode,
                remedy="Set device_noise_multiplier for privacy of a whole device.",
            )
        if manifest.adapter is not None or manifest.training is not None:
            refuse("model-with-sum", "Federated statistics take no model and no training terms.")
