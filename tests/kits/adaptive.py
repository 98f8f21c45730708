"""Tasks whose clip adapts, with example-level and with device-level privacy."""

from __future__ import annotations

from typing import Any

from dp.contracts import (
    AdaptiveClipSpec,
    BudgetSpec,
    CohortSpec,
)
from secagg.manifest import (
    Manifest,
)
from tests.kits.tasks import built, spec

NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=4)
ADAPTIVE = AdaptiveClipSpec()
DEVICES = 100


def example_level(**changes: Any) -> Manifest:
    return built(**{"adaptive_clip": ADAPTIVE, "budget": NO_LIMIT, **changes})


def device_level(**changes: Any) -> Manifest:
    terms: dict[str, Any] = {
        "algorithm": "fedavg",
        "privacy": "none",
        "device_noise_multiplier": 4.0,
        "adaptive_clip": ADAPTIVE,
        "cohort": CohortSpec(size_min=DEVICES, size_max=DEVICES, survivors_min=90),
        "budget": NO_LIMIT,
    }
    return built(spec(**{**terms, **changes}))
