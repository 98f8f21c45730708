"""Zeroth order: K slopes of the loss along public directions (MeZO, FedKSeed), and nothing else.

A device sends (L(x + e z_s) - L(x - e z_s)) / 2e for s < K (Malladi et al. 2023, definition 1;
Qin et al., arXiv 2312.06353), so noise has K dimensions instead of the adapter's. With example
privacy every example's K slopes are clipped together to ``clip`` and summed in the ring (as DP-ZO
clips its one scalar; Tang et al., arXiv 2401.04343); with device privacy a device's mean is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp.contracts.algorithms.averaging import has_privacy, weighted_segments
from dp.contracts.algorithms.declaration import TrainingAlgorithm
from dp.contracts.rules import check_segments, in_range, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import TrainingManifest

DIRECTIONS_MAX = 1 << 16


class ZerothOrder(TrainingAlgorithm):
    default_privacy = "distributed"
    modes = frozenset(("distributed", "none"))
    optimisers = frozenset(("sgd",))
    local_steps = False
    forward_only = True
    has_directions = True
    schedules = True

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        return {"directions": 16}

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        count = spec.training.directions
        in_range("directions", count, 1, DIRECTIONS_MAX)
        if (spec.privacy or self.default_privacy) == "distributed":
            return (SegmentSpec(name="gradient", length=count, clip=spec.clip),)
        return weighted_segments(spec, "gradient", count, noisy)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        if (spec.privacy or self.default_privacy) == "distributed":
            return float(spec.cohort.size_max * spec.training.batch_size)
        return float(spec.cohort.size_max) if noisy else 0.0

    def check_training(self, manifest: TrainingManifest) -> None:
        training, example = manifest.training, manifest.example_privacy
        in_range("directions", training.directions, 1, DIRECTIONS_MAX)
        in_range("perturbation", training.perturbation, 0, 1.0, open_low=True)
        expected = [("gradient", training.directions)]
        if not has_privacy(manifest):
            expected += [("weight", 1), ("loss", 1)]
        check_segments(manifest, expected)
        if example is not None and example.mode == "local":
            refuse(
                "privacy-mode",
                "Slopes are taken once per sum: local noise would only add noise.",
                expected="distributed or none",
                found="local",
                remedy="Use privacy = 'distributed'.",
            )
        if example is not None and manifest.segments[0].clip != example.clip:
            refuse(
                "clip-mismatch",
                "The segment's clip is not the example's.",
                expected=example.clip,
                found=manifest.segments[0].clip,
            )
        if training.proximal_mu != 0 or training.local_steps != 1:
            refuse(
                "local-steps",
                "Zeroth order takes one step per sum and has no proximal term.",
                expected=(1, 0.0),
                found=(training.local_steps, training.proximal_mu),
            )
        if training.server_optimiser != "sgd":
            refuse(
                "moments-of-directions",
                "Each release moves along directions of its own, and moments of them are noise.",
                expected="server_optimiser = 'sgd'",
                found=training.server_optimiser,
            )
        if has_privacy(manifest) and training.weight_unit != 0:
            refuse(
                "weights-with-noise",
                "Hidden weights would make the mean more sensitive than the noise accounts for.",
                expected="weight_unit = 0",
                found=training.weight_unit,
            )
        if has_privacy(manifest):
            in_range("denominator", training.denominator, 0, 1e12, open_low=True)
