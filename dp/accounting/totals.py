"""What a ledger's tasks cost together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dp.accounting.budget import UNITS, Total, charges_of, total, units_of, without_noise
from dp.accounting.statements import ReleaseFacts
from secagg.manifest import Manifest


@dataclass(frozen=True)
class Spent:
    """One task's charged cohorts. ``unaccounted``: some are under a manifest that the rules refuse,
    so that nothing is known of their noise."""

    manifest: Manifest
    counts: Mapping[ReleaseFacts, int]
    unaccounted: bool = False

    @property
    def states(self) -> bool:
        """Whether the task makes a statement of privacy."""
        return (self.manifest.example_privacy or self.manifest.device_privacy) is not None


def ledger_totals(tasks: Iterable[Spent]) -> tuple[Total, ...]:
    """What each unit has paid whose data served in every charged cohort of every task.

    At the smallest delta of the tasks that make a statement, or of all where none does: so no total
    is below a statement of one of them. Empty before the first cohort.
    """
    charged = [task for task in tasks if task.counts or task.unaccounted]
    if not charged:
        return ()
    accounted = [task for task in charged if task.counts]
    spent = [
        (task.manifest.task, charges_of(task.manifest, facts) * count)
        for task in accounted
        for facts, count in task.counts.items()
    ]
    spent += [
        (task.manifest.task, tuple(map(without_noise, UNITS)))
        for task in charged
        if task.unaccounted
    ]
    stating = [task for task in accounted if task.states]
    delta = min(task.manifest.budget.delta for task in stating or accounted or charged)
    units = units_of(charge for _, charges in spent for charge in charges)
    return tuple(total(unit, spent, delta) for unit in units)
