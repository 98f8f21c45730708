"""One declaration per algorithm, and the validator that task creation and devices share."""

from dp.contracts.advice import local_noise_norm, noise_over_clip, overshoot, warnings
from dp.contracts.algorithms.registry import ALGORITHMS, algorithm_of, suggested
from dp.contracts.build import build_manifest
from dp.contracts.check import check_manifest, check_recorded
from dp.contracts.spec import (
    AdaptiveClipSpec,
    BudgetSpec,
    CohortSpec,
    DeadlineSpec,
    SegmentSpec,
    TaskSpec,
    TrainingSpec,
    parse_spec,
)

__all__ = [
    "ALGORITHMS",
    "AdaptiveClipSpec",
    "BudgetSpec",
    "CohortSpec",
    "DeadlineSpec",
    "SegmentSpec",
    "TaskSpec",
    "TrainingSpec",
    "algorithm_of",
    "build_manifest",
    "check_manifest",
    "check_recorded",
    "local_noise_norm",
    "noise_over_clip",
    "overshoot",
    "parse_spec",
    "suggested",
    "warnings",
]
