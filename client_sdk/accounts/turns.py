"""How often an example has served in a task whose examples serve in turn (``dp.schedule``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from dp.accounting.budget import Entry, Unit
from dp.schedule import most_sums, participations


@dataclass(frozen=True)
class Turns:
    """What an account has of one schedule.

    Attributes:
        period: parts that the units are divided into.
        charges: cohorts that were charged so far, whatever became of them.
        participations: sums that one unit can be in.
        left: charges more of this device that leave it at as many.
        unit: what the task protects, and serves in turn.
    """

    period: int
    charges: int
    participations: int
    left: int
    unit: Unit = "example"


def turns_of(entries: Iterable[Entry]) -> tuple[Turns, ...]:
    """Of each schedule under which there are charges, in their order."""
    cohorts: Counter[tuple[str, int]] = Counter()
    parts: dict[tuple[str, int], list[int]] = {}
    unknown: Counter[tuple[str, int]] = Counter()
    units: dict[tuple[str, int], Unit] = {}
    for entry in entries:
        counters = dict.fromkeys(charge.counter for charge in entry.charges)
        for counter in (counter for counter in counters if counter is not None):
            of = [charge for charge in entry.charges if charge.counter == counter]
            unit = next((charge.unit for charge in of if charge.stated), of[0].unit)
            served = [charge.part for charge in of if charge.unit == unit]  # others have the same
            known = [part for part in served if part is not msgspec.UNSET]
            units.setdefault(counter, unit)
            cohorts[counter] += 1
            unknown[counter] += len(served) - len(known)
            parts.setdefault(counter, []).extend(known)
    return tuple(
        _turns(units[counter], counter[1], charges, parts[counter], unknown[counter])
        for counter, charges in cohorts.items()
    )


def _turns(unit: Unit, period: int, charges: int, parts: list[int], unknown: int) -> Turns:
    most = most_sums(parts, unknown, period)
    room = most - participations(unknown, period)  # of each part whose charges are known
    served, left = Counter(parts), 0
    while served[(charges + left) % period] < room:
        served[(charges + left) % period] += 1
        left += 1
    return Turns(period, charges, most, left, unit)
