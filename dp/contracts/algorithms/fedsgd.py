"""FedSGD: one masked sum of per-example clipped gradients per global step (distributed)."""

from __future__ import annotations

from dp.contracts.algorithms.declaration import (
    ANY_OPTIMISER,
    AVERAGED_FORMS,
    TrainingAlgorithm,
)
from dp.contracts.rules import adapter_length, check_segments, in_range, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import TrainingManifest


class FedSGD(TrainingAlgorithm):
    default_privacy = "distributed"
    modes = frozenset(("distributed",))
    optimisers = ANY_OPTIMISER
    local_steps = False
    clip_adapts = True
    schedules = True
    forms = AVERAGED_FORMS

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return (SegmentSpec(name="gradient", length=length, clip=spec.clip),)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        """The expected number of examples in a sum of the largest cohort."""
        return float(spec.cohort.size_max * spec.training.batch_size)

    def check_training(self, manifest: TrainingManifest) -> None:
        check_segments(manifest, [("gradient", adapter_length(manifest))])
        privacy = manifest.example_privacy
        if privacy is None or privacy.mode != "distributed":
            refuse(
                "privacy-mode",
                "FedSGD's segments are clipped per example for noise over their sum.",
                expected="distributed",
                found="none" if privacy is None else privacy.mode,
                remedy="Use fedavg or fedprox for privacy = 'local' or 'none'.",
            )
        if manifest.segments[0].clip != privacy.clip:
            refuse(
                "clip-mismatch",
                "The segment's clip is not the example's.",
                expected=privacy.clip,
                found=manifest.segments[0].clip,
            )
        training = manifest.training
        if training.proximal_mu != 0:
            refuse(
                "proximal-without-fedprox",
                "A single gradient has no proximal term.",
                expected="proximal_mu = 0",
                found=training.proximal_mu,
                remedy="Use the algorithm 'fedprox'.",
            )
        if training.local_steps != 1:
            refuse(
                "local-steps",
                "FedSGD takes one step per sum.",
                expected=1,
                found=training.local_steps,
                remedy="Use fedavg for local steps.",
            )
        if training.weight_unit != 0:
            refuse(
                "weights-with-noise",
                "The examples' weights are uniform under noise.",
                expected="weight_unit = 0",
                found=training.weight_unit,
            )
        in_range("denominator", training.denominator, 0, 1e12, open_low=True)
