"""Tasks that between them have every number of a manifest."""

from __future__ import annotations

from collections.abc import Callable

from dp.contracts import (
    AdaptiveClipSpec,
    CohortSpec,
    TaskSpec,
    TrainingSpec,
)
from tests.kits.device import fedsgd_spec, sum_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"

SPECS: dict[str, Callable[[], TaskSpec]] = {
    "distributed": lambda: fedsgd_spec(cohort=CohortSpec(), report_slot_s=60.0),
    "local": lambda: fedsgd_spec(cohort=CohortSpec(), algorithm="fedavg", noise_multiplier=4.0),
    "device": lambda: sum_spec(cohort=CohortSpec()),
    "buffer": lambda: fedsgd_spec(
        cohort=CohortSpec(size_min=48, size_max=48, survivors_min=40, model_min=12),
        algorithm="fedbuff",
        noise_multiplier=4.0,
    ),
    "scaffold": lambda: fedsgd_spec(
        cohort=CohortSpec(),
        algorithm="scaffold",
        noise_multiplier=4.0,
        training=TrainingSpec(population=100),
    ),
    "adam": lambda: fedsgd_spec(cohort=CohortSpec(), algorithm="fedadam", noise_multiplier=4.0),
    "slopes": lambda: fedsgd_spec(cohort=CohortSpec(), algorithm="zeroth-order"),
    "evaluation": lambda: fedsgd_spec(
        cohort=CohortSpec(),
        algorithm="evaluation",
        privacy="none",
        device_noise_multiplier=8.0,
        training=TrainingSpec(weight_unit=16),
    ),
    "adaptive": lambda: fedsgd_spec(cohort=CohortSpec(), adaptive_clip=AdaptiveClipSpec()),
    "sparse": lambda: sum_spec(cohort=CohortSpec(size_min=200, size_max=200, survivors_min=180)),
}
