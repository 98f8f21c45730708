"""FedAvg (McMahan et al. 2017): local steps, then the mean of the deltas."""

from __future__ import annotations

from dp.contracts.algorithms.averaging import (
    averaging_denominator,
    averaging_segments,
    check_averaging,
)
from dp.contracts.algorithms.declaration import ALL_FORMS, Algorithm
from dp.contracts.rules import refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest, training_of


class FedAvg(Algorithm):
    default_privacy = "local"
    clip_adapts = True
    schedules = True
    forms = ALL_FORMS

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return averaging_segments(spec, length, noisy)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return averaging_denominator(spec, noisy)

    def check(self, manifest: Manifest) -> None:
        check_averaging(manifest)
        training = training_of(manifest)
        if training.proximal_mu != 0:
            refuse(
                "proximal-without-fedprox",
                "A proximal term makes FedAvg FedProx.",
                expected="proximal_mu = 0",
                found=training.proximal_mu,
                remedy="Use the algorithm 'fedprox'.",
            )
