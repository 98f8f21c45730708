"""Which of the devices that have reported in make a cohort.

A cohort is of devices that trust each other: each one's partner is in every other's trusted set,
since a device refuses a roster with any other entry. With P the partners of a cohort, that is:
every device of it has its partner in P and trusts all of P. So one looks for sets P.

A synchronous cohort is then the first ``size_max`` of one version. A buffer (FedBuff) admits
several versions, but none with fewer than ``model_min`` devices behind it: every device refuses
such a roster, since a model that only a few trained on could take their updates apart. So versions
are whole groups; a device whose group is too small waits, and keeps nobody else waiting.

A device that refused a roster because of another is not put beside that other again while the
clash holds. What it said is not proven, so it is the one that gives way: it can keep itself out of
cohorts, and nobody else, unless nothing but those who object could make a cohort at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from secagg.manifest import CohortRules

_VERSIONS_MAX = 8  # combined in one cohort; the oldest groups, which expire first
_PARTNER_SETS_MAX = 64  # looked at for one cohort; there are as many as partners, as a rule
ANYBODY = ""  # whom a device objects to that refuses rosters as such

Clash = tuple[str, str]  # (who objects, to whom), identities or ANYBODY


@dataclass(frozen=True)
class WaitingDevice:
    """A device that waits. ``received_at``: when it began to, Unix seconds; a newer advert keeps
    the place of the one that it replaces.

    ``identity``: of the device, hashed. ``partner``: whose it is. ``trusted``: partners whose
    devices it accepts beside it, its own among them (empty: its own alone).
    """

    session: str
    advert: bytes
    version: int
    received_at: float
    identity: str = ""
    partner: str = ""
    trusted: frozenset[str] = frozenset()

    @property
    def accepts(self) -> frozenset[str]:
        return self.trusted or frozenset((self.partner,))


def choose(
    waiting: Sequence[WaitingDevice],
    rules: CohortRules,
    *,
    clashes: Collection[Clash] = (),
    last_opened_at: float = 0.0,
) -> tuple[WaitingDevice, ...]:
    """The largest cohort that devices and rules admit, earliest arrivals first; empty if there is
    none.

    Whoever was passed over by the last cohort comes first, if any cohort has room for it, so that
    a small group of devices that trust each other alone is not starved by a large one.
    Of cohorts of one size and one set of partners the one with more versions is taken, then the
    one with older versions.

    Args:
        waiting: of admissible versions only, in order of arrival.
        clashes: that hold now.
        last_opened_at: when the task's last cohort was formed, Unix seconds.
    """
    cohorts = [
        chosen for group in _trusting(waiting) if (chosen := _without(group, rules, clashes))
    ]
    passed_over = {
        ready.session: cohort
        for cohort in cohorts
        for ready in cohort
        if ready.received_at < last_opened_at
    }
    first = next((ready for ready in waiting if ready.session in passed_over), None)
    if first is not None:
        cohorts = [cohort for cohort in cohorts if first in cohort]
    return max(cohorts, key=len, default=())


def _trusting(waiting: Sequence[WaitingDevice]) -> Iterator[list[WaitingDevice]]:
    """Groups of devices that all accept each other, each as large as its set of partners allows."""
    present = {ready.partner for ready in waiting}
    if len(present) <= 1 and all(ready.partner in ready.accepts for ready in waiting):
        yield list(waiting)
        return
    number = {partner: place for place, partner in enumerate(sorted(present))}
    accepted = [_bits(ready.accepts, number) for ready in waiting]
    own = [1 << number[ready.partner] for ready in waiting]
    seen: set[tuple[str, ...]] = set()
    for partners in _partner_sets(accepted):
        members = [
            ready
            for ready, accepts, mine in zip(waiting, accepted, own, strict=True)
            if mine & partners and not partners & ~accepts
        ]
        names = tuple(ready.session for ready in members)
        if members and names not in seen:
            seen.add(names)
            yield members


def _bits(partners: Iterable[str], number: dict[str, int]) -> int:
    return sum(1 << number[partner] for partner in partners if partner in number)


def _partner_sets(accepted: Sequence[int]) -> list[int]:
    """The sets of partners that devices accept and what these have in common, as bit masks: the
    partners of a largest group are among them. First what the earliest arrival accepts, then what
    most devices do; a limit bounds the work that devices can make."""
    common = [partners for partners, _ in Counter(accepted).most_common()]
    found = list(dict.fromkeys([*accepted[:1], *common]))[:_PARTNER_SETS_MAX]
    for one in found:  # which grows
        for other in tuple(found):
            if len(found) >= _PARTNER_SETS_MAX:
                return found
            if one & other not in (0, *found):
                found.append(one & other)
    return found


def _without(
    group: Sequence[WaitingDevice], rules: CohortRules, clashes: Collection[Clash]
) -> tuple[WaitingDevice, ...]:
    """The largest cohort of the group in which nobody stands beside whom it objects to."""
    inside = {ready.identity for ready in group} | {ANYBODY}
    held = [(who, whom) for who, whom in clashes if who in inside and whom in inside]
    objecting = {who for who, _ in held}
    chosen = _largest([ready for ready in group if ready.identity not in objecting], rules)
    if chosen or not held:
        return chosen
    to_all = {who for who, whom in held if whom == ANYBODY}
    out = to_all | {whom for who, whom in held if who not in to_all}
    return _largest([ready for ready in group if ready.identity not in out], rules)


def _largest(waiting: Sequence[WaitingDevice], rules: CohortRules) -> tuple[WaitingDevice, ...]:
    counts = Counter(ready.version for ready in waiting)
    usable = sorted(v for v, count in counts.items() if count >= rules.behind_each_model)
    best: tuple[int, ...] = ()
    best_size = rules.size_min - 1
    for versions in _sets(usable[:_VERSIONS_MAX]):
        size = min(rules.size_max, sum(counts[version] for version in versions))
        if size > best_size and len(versions) * rules.behind_each_model <= rules.size_max:
            best, best_size = versions, size
    return _fill(waiting, best, best_size, rules.behind_each_model) if best else ()


def _sets(versions: Sequence[int]) -> Iterable[tuple[int, ...]]:
    """All non-empty sets, larger ones first, older versions first among equals."""
    for count in range(len(versions), 0, -1):
        yield from combinations(versions, count)


def _fill(
    waiting: Sequence[WaitingDevice], versions: Sequence[int], size: int, floor: int
) -> tuple[WaitingDevice, ...]:
    """The first ``floor`` of each version, then whoever came first."""
    taken = Counter[int]()
    first: list[WaitingDevice] = []
    rest: list[WaitingDevice] = []
    for ready in waiting:
        if ready.version not in versions:
            continue
        (first if taken[ready.version] < floor else rest).append(ready)
        taken[ready.version] += 1
    chosen = {ready.session for ready in (*first, *rest[: size - len(first)])}
    return tuple(ready for ready in waiting if ready.session in chosen)
