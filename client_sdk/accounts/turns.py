"""How often an example has served in a task whose examples serve in turn (``dp.schedule``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from dp.accounting.budget import Entry
from dp.schedule import most_sums, participations


@dataclass(frozen=True)
class Turns:
    """What an account has of one schedule.

    Attributes:
        period: parts that the examples are divided into.
        charges: cohorts that were charged so far, whatever became of them.
        participations: sums that one example can be in.
        left: charges more of this device that leave it at as many.
    """

    period: int
    charges: int
    participations: int
    left: int


def turns_of(entries: Iterable[Entry]) -> tuple[Turns, ...]:
    """Of each schedule under which there are charges, in their order."""
    cohorts: Counter[tuple[str, int]] = Counter()
    parts: dict[tuple[str, int], list[int]] = {}
    unknown: Counter[tuple[str, int]] = Counter()
    for entry in entries:
        counted = [(charge.counter, charge.part) for charge in entry.charges]
        for counter in dict.fromkeys(counter for counter, _ in counted if counter is not None):
            cohorts[counter] += 1
            known = [part for of, part in counted if of == counter and part is not msgspec.UNSET]
            unknown[counter] += len([of for of, _ in counted if of == counter]) - len(known)
            parts.setdefault(counter, []).extend(known)
    return tuple(
        _turns(counter[1], charges, parts[counter], unknown[counter])
        for counter, charges in cohorts.items()
    )


def _turns(period: int, charges: int, parts: list[int], unknown: int) -> Turns:
    most = most_sums(parts, unknown, period)
    room = most - participations(unknown, period)  # of each part whose charges are known
    served, left = Counter(parts), 0
    while served[(charges + left) % period] < room:
        served[(charges + left) % period] += 1
        left += 1
    return Turns(period, charges, most, left)
