"""What one release costs each unit, as events, and what charges cost together.

Every release charges every unit, whatever its task protects:

* an example by the noise that protects it; where only devices are protected, by what it may move
  of a clipped vector, twice its bound; without noise, without bound;
* a person (or document) whose rows are clipped as one, in the tasks that protect persons, by that
  noise. A row of it is then charged by what it may move of the clipped sum, twice its bound. In
  other tasks a person is charged by what all rows of a device may move;
* a device by the noise in the ring, as far as a contribution can move the sum: one clipped vector,
  or ``examples_max`` of them where examples are clipped. A local step has no such cap.

Where batches are scheduled, the charges of one schedule are counted together: an example was in
some of those sums, and the dearest that it can be in are composed (:mod:`dp.schedule`). Of two
schedules, one after the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import msgspec

from dp.accounting.events import (
    DiscreteGaussianSum,
    Event,
    NonPrivateRelease,
    SkellamRelease,
    composed,
    scheduled,
)
from dp.accounting.statements import (
    ADJACENCY,
    OVERRUN_DRAWS,
    ReleaseFacts,
    Unit,
    draws_per_release,
    epsilon_of,
    fewest,
    local_step,
    ring_release,
    slack_log2,
)
from dp.errors import BudgetError
from dp.noise.grid import examples_factor
from dp.schedule import most_sums, period_of, schedule_of
from secagg.manifest import GroupUnit, Manifest

UNITS: tuple[Unit, ...] = ("example", "device")
"""Those that every release charges."""
GROUP_UNITS: tuple[GroupUnit, ...] = get_args(GroupUnit)
"""Those that a release charges where it protects them; else :func:`charges_to` derives the cost."""
ALL_UNITS: tuple[Unit, ...] = (*UNITS, *GROUP_UNITS)


class Charge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one release costs one unit: ``count`` releases with these integers.

    ``variance``: 0 where no noise protects the unit. ``shares`` and ``length``: 0 for Skellam noise
    of total ``variance``; for discrete Gaussian shares their number and the coordinates,
    ``variance`` then being that of one share. ``stated``: the task itself makes a statement about
    this unit; else the cost follows from what protects the other unit, if anything does.

    ``schedule``: digest of the manifest (hex) by which an example is not in every release, and
    ``period`` its period; not written where it is in all. ``part``: the examples that were in this
    one, where its account knows it. Such a charge is one release, with ``count`` events.

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
    stated: bool = True
    period: int | msgspec.UnsetType = msgspec.UNSET
    schedule: str | msgspec.UnsetType = msgspec.UNSET
    part: int | msgspec.UnsetType = msgspec.UNSET

    @property
    def counter(self) -> tuple[str, int] | None:
        """(schedule, period): what it is counted under; None: an example is in every release.

        Raises:
            ValueError: there is no such schedule, or it has no such part.
        """
        if self.schedule is msgspec.UNSET or self.period is msgspec.UNSET:
            if (self.schedule, self.period, self.part) != (msgspec.UNSET,) * 3:
                raise ValueError("a charge has a part of a schedule alone")
            return None
        if self.period < 1 or not (self.part is msgspec.UNSET or 0 <= self.part < self.period):
            raise ValueError(f"a schedule of period {self.period} has no part {self.part}")
        return self.schedule, self.period

    def event(self) -> SkellamRelease | DiscreteGaussianSum | NonPrivateRelease:
        l2, l1, variance = int(self.l2_squared), int(self.l1), int(self.variance)
        if variance == 0:
            return NonPrivateRelease(ADJACENCY[self.unit])
        if self.shares:
            return DiscreteGaussianSum(
                l2, l1, variance, self.shares, self.length, ADJACENCY[self.unit]
            )
        return SkellamRelease(l2, l1, variance, ADJACENCY[self.unit])


class Total(msgspec.Struct, frozen=True, kw_only=True):
    """What releases of several tasks cost one unit whose data served in all of them, unamplified.

    Attributes:
        epsilon: of all of them; infinite if a task adds no noise that protects the unit.
        unbounded: names of those tasks.
        bounded: epsilon of the other tasks.
        stated: epsilon of the tasks that make a statement about the unit themselves; None without
            one.
        derived: names of the tasks that make none, and whose cost follows from the noise that
            protects the other unit.
        stored_before: names of the tasks of which an earlier version stored no charge for the unit.
    """

    unit: Unit
    delta: float
    epsilon: float
    unbounded: tuple[str, ...]
    bounded: float
    stated: float | None
    derived: tuple[str, ...]
    stored_before: tuple[str, ...] = ()


def _charge(unit: Unit, event: Event, draws: int, count: int = 1, *, stated: bool) -> Charge:
    match event:
        case SkellamRelease(l2, l1, variance):
            shares = length = 0
        case DiscreteGaussianSum(l2, l1, variance, shares, length):
            pass
        case NonPrivateRelease():
            l2 = l1 = variance = shares = length = 0
        case _:
            raise BudgetError(
                "charge-unknown", "No charge for this event.", found=type(event).__name__
            )
    return Charge(
        unit=unit,
        l2_squared=str(l2),
        l1=str(l1),
        variance=str(variance),
        count=count,
        draws=draws,
        shares=shares,
        length=length,
        stated=stated,
    )


def charges_of(
    manifest: Manifest, facts: ReleaseFacts | None = None, part: int | None = None
) -> tuple[Charge, ...]:
    """What one release costs each unit, unamplified; without ``facts``, at the fewest survivors.

    One charge for each of ``UNITS``, in their order, and one for the person (or document) that
    the task protects, if any. ``part``: of a scheduled batch, if it is known.
    """
    if facts is None:
        facts = fewest(manifest)
    draws = draws_per_release(manifest)
    privacy, protected = manifest.example_privacy, manifest.device_privacy is not None
    if manifest.noise is None:
        device = without_noise("device")
    else:
        event = ring_release(manifest, facts, examples_factor(manifest), ADJACENCY["device"])
        device = _charge("device", event, draws, stated=protected)
    if privacy is None:
        return example_of(device), device
    if privacy.mode == "distributed":
        event = ring_release(manifest, facts, 1, ADJACENCY["example"])
        clipped = _charge(privacy.protects, event, draws + OVERRUN_DRAWS, stated=True)
    else:
        steps = manifest.training.local_steps if manifest.training is not None else 1
        drawn = steps * manifest.data_length
        clipped = _charge(privacy.protects, local_step(manifest), drawn, steps, stated=True)
    clipped = _counted(clipped, manifest, part)
    if clipped.unit == "example":
        return clipped, device
    return example_of(clipped), device, clipped


def _counted(charge: Charge, manifest: Manifest, part: int | None) -> Charge:
    """The charge of what one clip bounds, under its schedule where the task has one."""
    period = period_of(manifest)
    if period == 1:
        return charge
    return msgspec.structs.replace(
        charge,
        period=period,
        schedule=schedule_of(manifest),
        part=msgspec.UNSET if part is None else part,
    )


def without_noise(unit: Unit) -> Charge:
    """The charge of a release that nothing here bounds for this unit."""
    return _charge(unit, NonPrivateRelease(), 0, stated=False)


def example_of(whole: Charge) -> Charge:
    """What an example inside of a clipped whole costs, a device's or a person's: adding, removing
    or changing it moves the vector from one within the bound to another, by at most twice the
    bound."""
    return msgspec.structs.replace(
        whole,
        unit="example",
        l2_squared=str(4 * int(whole.l2_squared)),
        l1=str(2 * int(whole.l1)),
        stated=False,
    )


def completed(charges: Sequence[Charge]) -> tuple[Charge, ...]:
    """The charges with those of units that earlier versions left out.

    They charged only what a task states. An example beside a device is derived from its charge.
    The rest is without bound: nothing tells what a device sent where examples were clipped.
    """
    found = {charge.unit: charge for charge in charges}
    missing = []
    if "example" not in found:
        device = found.get("device")
        missing.append(without_noise("example") if device is None else example_of(device))
    if "device" not in found:
        missing.append(without_noise("device"))
    return (*charges, *missing)


def charges_to(unit: Unit, charges: Sequence[Charge]) -> list[Charge]:
    """Those of a release's charges that are to one unit.

    A person (or document) whose rows are not clipped as one costs no more than all rows of its
    device: where each row, or a unit of another kind, is clipped by itself, the device's charges,
    which count such clips; where the device's vector alone is clipped, what any change of its data
    may move, which is an example's charge.
    """
    whole = completed(charges)
    own = [charge for charge in whole if charge.unit == unit]
    if own:
        return own
    by_itself = any(charge.stated and charge.unit != "device" for charge in charges)
    source = "device" if by_itself else "example"
    return [
        msgspec.structs.replace(charge, unit=unit, stated=False)
        for charge in whole
        if charge.unit == source
    ]


def compose(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of charges to one unit, composed as events.

    Of charges under one schedule, the dearest that an example can be in; what imperfect randomness
    takes from delta is that of all.
    """
    return _composed(Counter(charges), delta)


def _composed(charges: Mapping[Charge, int], delta: float) -> float:
    """Epsilon of each charge as often as it is counted."""
    counts: Counter[Event] = Counter()
    under: dict[tuple[str, int], list[tuple[Charge, int]]] = {}
    draws = 0
    for charge, times in charges.items():
        draws += charge.draws * times
        counter = charge.counter
        if counter is None:
            counts[charge.event()] += charge.count * times
        else:
            under.setdefault(counter, []).append((charge, times))
    for (_, period), group in under.items():
        counts.update(_dearest(group, period))
    if not counts:
        return 0.0
    return epsilon_of(composed(counts), delta, slack_log2(draws))


def _dearest(group: Sequence[tuple[Charge, int]], period: int) -> Mapping[Event, int]:
    """Events of the charges under one schedule that an example can be in."""
    releases: Counter[tuple[Event, int]] = Counter()
    known: Counter[int] = Counter()
    unknown = 0
    for charge, times in group:
        releases[charge.event(), charge.count] += times
        if charge.part is msgspec.UNSET:
            unknown += times
        else:
            known[charge.part] += times
    most = most_sums(known.elements(), unknown, period)
    if len(releases) == 1:
        ((event, count),) = releases
        return {event: count * min(most, releases[event, count])}
    return scheduled({composed({event: n}): times for (event, n), times in releases.items()}, most)


def units_of(charges: Iterable[Charge]) -> tuple[Unit, ...]:
    """``UNITS``, and the persons or documents that some of the charged tasks protect."""
    charged = {charge.unit for charge in charges}
    return (*UNITS, *(unit for unit in GROUP_UNITS if unit in charged))


def cost_of(unit: Unit, manifest: Manifest, releases: int) -> float:
    """Epsilon of ``releases`` of one task at the fewest survivors for a unit, unamplified and
    whatever the task protects."""
    each = dict.fromkeys(charges_to(unit, charges_of(manifest)), releases)
    return _composed(each, manifest.budget.delta)


def total(unit: Unit, spent: Iterable[tuple[str, Sequence[Charge]]], delta: float) -> Total:
    """What (task, charges) of releases cost one unit together."""
    bounded: list[Charge] = []
    unbounded: dict[str, None] = {}
    derived: dict[str, None] = {}
    before: dict[str, None] = {}
    for task, charges in spent:
        if unit in UNITS and all(charge.unit != unit for charge in charges):
            before[task] = None
        for charge in charges_to(unit, charges):
            if isinstance(charge.event(), NonPrivateRelease):
                unbounded[task] = None
                continue
            bounded.append(charge)
            if not charge.stated:
                derived[task] = None
    stated = [charge for charge in bounded if charge.stated]
    epsilon = compose(bounded, delta)
    return Total(
        unit=unit,
        delta=delta,
        epsilon=math.inf if unbounded else epsilon,
        unbounded=tuple(unbounded),
        bounded=epsilon,
        stated=compose(stated, delta) if stated else None,
        derived=tuple(derived),
        stored_before=tuple(before),
    )
