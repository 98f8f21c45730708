"""The privacy account: charged before anything can be seen, never refunded.

An aggregator keeps one for each task, a device one over all its tasks (its data is the same in
all of them, so costs compose). Charges are kept as events per unit of protection, and epsilon is
computed from their composition, not by adding epsilons.

    reserved  ->  spent          before the first byte of step 3 (device), before opening (service)
    reserved  ->  cancelled      only while no device of the cohort has sent anything of step 3
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from dp.accounting import (
    ADJACENCY,
    OVERRUN_DRAWS,
    ReleaseFacts,
    draws_per_release,
    epsilon_of,
    fewest,
    local_step,
    ring_release,
    slack_log2,
)
from dp.errors import BudgetError
from dp.events import Composed, DiscreteGaussianSum, Event, SkellamRelease
from dp.grid import examples_factor
from secagg.manifest import Manifest

Unit = Literal["example", "device"]


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one release costs one unit: ``count`` releases with these integers.

    ``shares`` and ``length``: 0 for Skellam noise of total ``variance``; for discrete Gaussian
    shares their number and the coordinates, ``variance`` then being that of one share.

    Integers are decimal strings: JSON readers keep no 64-bit integers.
    """

    unit: Unit
    l2_squared: str
    l1: str
    variance: str
    count: int
    draws: int  # coordinates of noise, for what imperfect randomness takes from delta
    shares: int = 0
    length: int = 0

    def event(self) -> SkellamRelease | DiscreteGaussianSum:
        l2, l1, variance = int(self.l2_squared), int(self.l1), int(self.variance)
        if self.shares:
            return DiscreteGaussianSum(
                l2, l1, variance, self.shares, self.length, ADJACENCY[self.unit]
            )
        return SkellamRelease(l2, l1, variance, ADJACENCY[self.unit])


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cohort's charges. ``state``: ``reserved`` or ``spent``."""

    cohort: str  # hex
    task: str
    state: Literal["reserved", "spent"]
    charges: tuple[Charge, ...]


def charges_of(manifest: Manifest, facts: ReleaseFacts | None = None) -> tuple[Charge, ...]:
    """What one release costs, unamplified; without ``facts``, at the fewest survivors."""
    if facts is None:
        facts = fewest(manifest)
    charges = []

    def charge(unit: Unit, event: Event, draws: int, repeated: int = 1) -> None:
        match event:
            case SkellamRelease(l2, l1, variance):
                shares = length = 0
            case DiscreteGaussianSum(l2, l1, variance, shares, length):
                pass
            case _:
                raise BudgetError(
                    "charge-unknown", "No charge for this event.", found=type(event).__name__
                )
        charges.append(
            Charge(
                unit=unit,
                l2_squared=str(l2),
                l1=str(l1),
                variance=str(variance),
                count=repeated,
                draws=draws,
                shares=shares,
                length=length,
            )
        )

    draws = draws_per_release(manifest)
    example = manifest.example_privacy
    if example is not None and example.mode == "distributed":
        charge("example", ring_release(manifest, facts, 1), draws + OVERRUN_DRAWS)
    if example is not None and example.mode == "local":
        steps = manifest.training.local_steps if manifest.training is not None else 1
        charge("example", local_step(manifest), steps * manifest.data_length, steps)
    if manifest.device_privacy is not None:
        charge("device", ring_release(manifest, facts, examples_factor(manifest)), draws)
    return tuple(charges)


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An immutable account; every change returns a new one.

    ``max_epsilon``: per unit, at ``delta``; None: no limit.
    """

    delta: float
    max_epsilon: float | None = None
    entries: tuple[Entry, ...] = ()

    def epsilon(self, unit: Unit, extra: tuple[Charge, ...] = ()) -> float:
        """Unamplified epsilon of everything reserved and spent (and ``extra``) for one unit."""
        counts: Counter[Event] = Counter()
        draws = 0
        for charge in (*(c for entry in self.entries for c in entry.charges), *extra):
            if charge.unit == unit:
                counts[charge.event()] += charge.count
                draws += charge.draws
        if not counts:
            return 0.0
        event = Composed(tuple(sorted(counts.items(), key=lambda item: repr(item[0]))))
        return epsilon_of(event, self.delta, slack_log2(draws))

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

    def spend(self, cohort: str, manifest: Manifest, facts: ReleaseFacts | None = None) -> Account:
        """Charge for good; idempotent. Without a reservation the cost must still be affordable.

        ``facts``: the confirmed numbers, known to the aggregator before it opens; a device that
        does not know what may be opened charges the fewest survivors.

        Raises:
            BudgetError: as :meth:`reserve`.
        """
        known = self.entry(cohort)
        if known is not None:
            self._same_task(known, manifest)
            if known.state == "spent":
                return self
        charges = charges_of(manifest, facts)
        if known is None:
            self._afford(manifest, charges)
        return self._with(Entry(cohort=cohort, task=manifest.task, state="spent", charges=charges))

    def cancel(self, cohort: str) -> Account:
        """Drop a reservation. Only for a cohort in which step 3 has not begun.

        Raises:
            BudgetError: ``charge-final`` if the cohort's cost is spent.
        """
        known = self.entry(cohort)
        if known is None:
            return self
        if known.state == "spent":
            raise BudgetError("charge-final", "What is spent is never refunded.", found=cohort)
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
        for unit in {charge.unit for charge in charges}:
            cost = self.epsilon(unit, charges)
            if cost > self.max_epsilon:
                raise BudgetError(
                    "budget-exhausted",
                    f"The next release would exceed the budget per {unit}.",
                    expected=f"epsilon <= {self.max_epsilon:g}",
                    found=round(cost, 4),
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
        except (msgspec.MsgspecError, ValueError) as error:
            raise BudgetError(
                "account-malformed", f"The privacy account does not parse: {error}."
            ) from error
        return account
