"""Tasks whose examples serve in turn."""

from __future__ import annotations

from dp.contracts import BudgetSpec, CohortSpec, TaskSpec
from tests.kits.device import fedsgd_spec, make_manifest
from tests.kits.quadratics import local_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
NO_LIMIT = BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=12)


def scheduled_spec(devices: int = 4, **changes: object) -> TaskSpec:
    """Distributed noise, four parts; all but one of the devices must survive."""
    return fedsgd_spec(
        **{
            "sampling_rate": 1.0,
            "period": 4,
            "budget": NO_LIMIT,
            "cohort": CohortSpec(size_min=devices, size_max=devices, survivors_min=devices - 1),
            **changes,
        }
    )


SCHEDULED = make_manifest(scheduled_spec(), VERIFIER)
LOCAL = make_manifest(local_spec(period=4, budget=NO_LIMIT), VERIFIER)
