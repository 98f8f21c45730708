"""Cases of refusals, and tasks with noise that several files of them refuse things of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from dp.contracts import BudgetSpec, CohortSpec
from dp.errors import AccountingError
from secagg.errors import SecaggError
from secagg.manifest import Manifest
from tests.kits.tasks import built, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)


class Case(NamedTuple):
    call: Callable[[], Any]
    reason: str
    expected: object = None
    found: object = None
    error: type[SecaggError] = AccountingError


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
