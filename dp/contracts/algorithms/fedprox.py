"""FedProx (Li et al. 2020): FedAvg with a pull mu (y - x) to the global model.

The pull is added after clip and noise: it depends on the device's iterate only, so it is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp.contracts.algorithms.averaging import (
    averaging_denominator,
    averaging_segments,
    check_averaging,
)
from dp.contracts.algorithms.declaration import ALL_FORMS, Algorithm
from dp.contracts.rules import in_range
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Manifest, training_of


class FedProx(Algorithm):
    default_privacy = "local"
    proximal_term = True
    clip_adapts = True
    schedules = True
    forms = ALL_FORMS

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        return {"proximal_mu": 0.05}

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return averaging_segments(spec, length, noisy)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return averaging_denominator(spec, noisy)

    def check(self, manifest: Manifest) -> None:
        check_averaging(manifest)
        in_range("proximal_mu", training_of(manifest).proximal_mu, 0, 1e6, open_low=True)
