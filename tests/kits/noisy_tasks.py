"""Tasks with noise that tests of refusals share."""

from __future__ import annotations

from typing import Any

import msgspec

from dp.contracts import BudgetSpec, CohortSpec
from secagg.manifest import Manifest
from tests.kits.tasks import built, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)


def device_level(**changes: Any) -> Manifest:
    cohort = CohortSpec(size_min=6, size_max=10, survivors_min=5)
    return built(
        statistics(
            ("x", 50, 1.0), device_noise_multiplier=1.0, cohort=cohort, budget=NO_LIMIT, **changes
        )
    )


def in_parts() -> Manifest:
    manifest = device_level()
    noise = msgspec.structs.replace(manifest.noise, removable_drops=(2, 5))
    return msgspec.structs.replace(manifest, noise=noise)
