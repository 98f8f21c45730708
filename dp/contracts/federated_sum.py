"""Federated statistics: sums of bounded vectors, without any model."""

from __future__ import annotations

import math

from dp.contracts.rules import refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest


class FederatedSum:
    default_privacy = "none"

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
        device = manifest.device_privacy
        if device is not None:
            bound = math.sqrt(sum(segment.clip**2 for segment in manifest.segments))
            if not math.isclose(device.clip, bound, rel_tol=1e-9):
                refuse(
                    "clip-mismatch",
                    "The device's bound is not that of its segments together.",
                    expected=bound,
                    found=device.clip,
                )
