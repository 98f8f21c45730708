"""The privacy account: charged before anything can be seen, never refunded.

An aggregator keeps one for each task, a device one over all its tasks (its data is the same in
all of them, so costs compose). Charges are kept as events per unit of protection, and epsilon is
computed from their composition, not by adding epsilons.

    reserved  ->  spent      before the first byte of step 3 (device), before unmasking (service)
    reserved  ->  cancelled  only while no device of the cohort has sent anything of step 3
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from dp.accounting.charges import (
    ALL_UNITS,
    UNITS,
    Charge,
    Total,
    charges_of,
    completed,
    compose,
    cost_of,
    example_of,
    total,
    units_of,
    without_noise,
)
from dp.accounting.figures import limit_shown, upper
from dp.accounting.statements import ReleaseFacts, Unit
from dp.errors import BudgetError
from secagg.manifest import Manifest

__all__ = [
    "ALL_UNITS",
    "UNITS",
    "Account",
    "Charge",
    "Entry",
    "Total",
    "Unit",
    "charges_of",
    "completed",
    "compose",
    "cost_of",
    "example_of",
    "total",
    "units_of",
    "without_noise",
]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cohort's charges. ``state``: ``reserved`` or ``spent``."""

    cohort: str  # hex
    task: str
    state: Literal["reserved", "spent"]
    charges: tuple[Charge, ...]


def _schedules(charges: Iterable[Charge]) -> list[tuple[str, int]]:
    return sorted({charge.counter for charge in charges if charge.counter is not None})


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An immutable account; every change returns a new one.

    ``max_epsilon``: at ``delta``, for each unit that one of its tasks makes a statement about, in
    all releases with noise that protects the unit; None: no limit.
    """

    delta: float
    max_epsilon: float | None = None
    entries: tuple[Entry, ...] = ()

    def epsilon(self, unit: Unit, extra: tuple[Charge, ...] = ()) -> float:
        """Unamplified epsilon of everything reserved and spent (and ``extra``) for one unit.

        Infinite if a release adds no noise that protects the unit; see :meth:`total`.
        """
        return self.total(unit, extra).epsilon

    def total(self, unit: Unit, extra: tuple[Charge, ...] = (), task: str = "") -> Total:
        """All that is reserved and spent, and ``extra`` charges of ``task``, for one unit."""
        spent = [(entry.task, entry.charges) for entry in self.entries]
        return total(unit, [*spent, (task, extra)] if extra else spent, self.delta)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Those of which there is a total: :func:`dp.accounting.charges.units_of`."""
        return units_of(charge for entry in self.entries for charge in entry.charges)

    def charged(self, schedule: str) -> int:
        """Cohorts that are reserved or charged under a schedule (hex)."""
        return sum(
            any(charge.schedule == schedule for charge in entry.charges) for entry in self.entries
        )

    def entry(self, cohort: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.cohort == cohort), None)

    def reserve(self, cohort: str, manifest: Manifest) -> Account:
        """Set aside what a release of this cohort may cost; doing it twice changes nothing.

        Raises:
            BudgetError: ``budget-exhausted``, ``delta-mismatch``, ``cohort-mismatch``.
        """
        known = self.entry(cohort)
        if known is not None:
            self._same_task(known, manifest)
            return self
        self._afford(manifest, charges_of(manifest))
        return self._with(
            Entry(cohort=cohort, task=manifest.task, state="reserved", charges=charges_of(manifest))
        )

    def spend(
        self,
        cohort: str,
        manifest: Manifest,
        facts: ReleaseFacts | None = None,
        part: int | None = None,
    ) -> Account:
        """Charge for good; idempotent. Without a reservation the cost must still be affordable.

        ``facts``: the confirmed numbers, known to the aggregator before it unmasks; a device that
        does not know what may be unmasked charges the fewest survivors. ``part``: of a scheduled
        batch; only a device knows its own.

        Raises:
            BudgetError: as :meth:`reserve`.
        """
        known = self.entry(cohort)
        if known is not None:
            self._same_task(known, manifest)
            if known.state == "spent":
                return self
        charges = charges_of(manifest, facts, part)
        if known is None:
            self._afford(manifest, charges)
        return self._with(Entry(cohort=cohort, task=manifest.task, state="spent", charges=charges))

    def including(self, entry: Entry) -> Account:
        """With a charge that was found again, whatever is left; a known cohort changes nothing."""
        return self if self.entry(entry.cohort) is not None else self._with(entry)

    def cancel(self, cohort: str) -> Account:
        """Drop a reservation. Only for a cohort in which step 3 has not begun.

        Raises:
            BudgetError: ``charge-final`` if the cohort's cost is spent.
        """
        known = self.entry(cohort)
        if known is None:
            return self
        if known.state == "spent":
            raise BudgetError(
                "charge-final", "The cohort's cost is spent; nothing is given back.", found=cohort
            )
        return msgspec.structs.replace(
            self, entries=tuple(entry for entry in self.entries if entry.cohort != cohort)
        )

    def _afford(self, manifest: Manifest, charges: tuple[Charge, ...]) -> None:
        budget = manifest.budget
        charged = sum(1 for entry in self.entries if entry.task == manifest.task)
        if charged >= budget.releases_max:
            raise BudgetError(
                "releases-exhausted",
                "The task has charged all its releases.",
                expected=f"at most {budget.releases_max}",
                found=charged + 1,
            )
        if self.max_epsilon is None:
            return
        every = (charges, *(entry.charges for entry in self.entries))
        for unit in {charge.unit for each in every for charge in each if charge.stated}:
            cost = self.total(unit, charges, manifest.task).bounded
            if cost > self.max_epsilon:
                raise BudgetError(
                    "budget-exhausted",
                    f"The next release would exceed the budget per {unit}.",
                    expected=f"epsilon <= {limit_shown(self.max_epsilon)}",
                    found=upper(cost),
                    remedy="The task ends here; a larger budget needs a new task.",
                )

    def _same_task(self, known: Entry, manifest: Manifest) -> None:
        if known.task != manifest.task:
            raise BudgetError(
                "cohort-mismatch",
                "The cohort was charged to another task.",
                expected=known.task,
                found=manifest.task,
            )
        here, asked = _schedules(known.charges), _schedules(charges_of(manifest))
        if here != asked:
            raise BudgetError(
                "cohort-mismatch",
                "The cohort was charged under another schedule.",
                expected=here,
                found=asked,
            )

    def _with(self, entry: Entry) -> Account:
        kept = tuple(known for known in self.entries if known.cohort != entry.cohort)
        return msgspec.structs.replace(self, entries=(*kept, entry))

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Account:
        """Parse strictly.

        Raises:
            BudgetError: ``account-malformed``: an account that does not parse is never an empty
                one.
        """
        try:
            account = msgspec.json.decode(data, type=cls, strict=True)
            for entry in account.entries:
                for charge in entry.charges:
                    charge.event()
                    _ = charge.counter
        except (msgspec.MsgspecError, ValueError) as error:
            raise BudgetError(
                "account-malformed", f"The privacy account does not parse: {error}."
            ) from error
        return account
