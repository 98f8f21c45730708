"""The end of an open cohort by its operator."""

from __future__ import annotations

from aggregator.cohorts.actor import CohortOver, Unchanged
from aggregator.cohorts.driver import Driver
from aggregator.core import Core
from aggregator.errors import Refusal, conflict
from aggregator.store import reads
from aggregator.tasks import Task
from aggregator.views import CohortAborted
from secagg.errors import SecaggError
from secagg.server import Cancel, masking_set_of

REASON = "operator-abort"  # what devices, log and ledger are told


async def abort(core: Core, driver: Driver, task: Task) -> CohortAborted:
    """End the task's open cohort, on whichever replica it is; its devices are told.

    What it costs is decided as for every cohort that the service failed: once a device may have
    sent, it is charged.

    Raises:
        Refusal: ``no-cohort``; ``cohort-ended`` if it ended first.
    """
    cohort = (await reads.current(core.database, task.name)).cohort
    if cohort is None:
        raise conflict(
            "no-cohort",
            f"No cohort of {task.name!r} is under way.",
            remedy="secagg task pause stops further cohorts from forming.",
        )
    try:
        live = await driver.get(cohort)
        await live.cohort.refresh()
        state = live.cohort.state
        await live.cohort.submit(Cancel(REASON, core.clock()), must_change=True)
    except (CohortOver, Unchanged) as error:
        raise _ended(task.name) from error
    except Refusal:
        raise
    except SecaggError as error:  # the machine: nothing is left to cancel
        raise _ended(task.name) from error
    charged = await reads.release_of(core.database, task.name, cohort)
    told = bool(masking_set_of(state))
    return CohortAborted(
        task=task.name,
        cohort=cohort,
        phase=state.phase,
        size=len(state.roster),
        charge="charged" if charged else "given-back" if told else "none",
        release=charged.release if charged else None,
        epsilon=charged.epsilon if charged else None,
    )


def _ended(task: str) -> Refusal:
    return conflict(
        "cohort-ended",
        "The cohort ended before it could be aborted.",
        remedy=f"secagg task show {task} says how.",
    )
