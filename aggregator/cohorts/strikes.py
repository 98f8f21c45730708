"""How devices that are in question are steered: decay, whom a cohort takes first, and back-off.

A cohort that failed after a charge, without anybody being named, strikes every device in question
and its partner. A strike says little about one device: it decays, it steers, and it never bans.

1. Unstruck devices go first. Where enough of them wait, a cohort takes none that is struck but a
   few that have waited long, no two of which share a strike: so honest devices come back, and a
   spoiler among them costs one more release.
2. Where they are too few, the least struck fill up, and two that share a strike go to different
   cohorts where others wait. At most half of those that wait are taken, if that is a cohort: who
   then fails again is in the smaller half.
3. A device that was struck more than once in a task is held back there, four times longer each
   time, up to a day. If only such devices are left, their cohort forms all the same, later.

A release halves a device's only strike in its task. It takes four releases to halve two, sixteen to
halve three: a device that behaves and spoils in turn would wash itself clean otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aggregator.cohorts.choosing import WaitingDevice
from secagg.manifest import CohortRules

HALF_LIFE_S = 7 * 86_400.0
FORGOTTEN_S = 8 * HALF_LIFE_S  # a strike this old counts a 256th
STRUCK_MIN = 0.6  # a single strike counts for five days, or until the next release
HELD_FIRST_S = 60.0
HELD_GROWTH = 4.0
HELD_MAX_S = 86_400.0
PROBE_FIRST_S = 600.0
PARDON_GROWTH = 4
_PROBES_SHARE = 4  # one place in so many of the least cohort
_PARTNER_HANDICAP_S = 60.0
_PARTNER_HANDICAP_MAX_S = 600.0


@dataclass(frozen=True)
class Strike:
    """``at``: Unix seconds. ``weight``: 1, or less after a release. ``here``: whether it is of the
    task whose cohort is formed."""

    cohort: str
    at: float
    weight: float = 1.0
    here: bool = True


@dataclass(frozen=True)
class Standing:
    """What is known of the devices that wait. ``strikes``: by session; ``partners``: strikes of a
    session's partner, one for each cohort."""

    strikes: Mapping[str, Sequence[Strike]] = field(default_factory=dict)
    partners: Mapping[str, Sequence[Strike]] = field(default_factory=dict)


def score(strikes: Iterable[Strike], now_s: float) -> float:
    """Strikes that still count: each by half after every half-life."""
    return sum(s.weight * math.pow(0.5, max(0.0, now_s - s.at) / HALF_LIFE_S) for s in strikes)


def forgiven(weight: float, strikes: int) -> float:
    """Weight of each of a device's ``strikes`` after a release that held it."""
    return weight * math.pow(0.5, 1.0 / PARDON_GROWTH ** (strikes - 1))


def is_struck(strikes: Iterable[Strike], now_s: float) -> bool:
    return score(strikes, now_s) >= STRUCK_MIN


def held_until_s(strikes: Sequence[Strike], now_s: float) -> float:
    """Unix seconds before which a device is in no cohort: bounded exponential back-off from its
    last strike in this task. One strike holds nobody back, nor do those of other tasks: a spoiler
    in many tasks at once would hold everybody beside it back for a day in all of them."""
    strikes = [strike for strike in strikes if strike.here]
    if len(strikes) < 2:
        return 0.0
    counted = score(strikes, now_s)
    if counted < STRUCK_MIN:
        return 0.0
    exponent = min(max(0.0, counted - 1.0), 32.0)
    return max(s.at for s in strikes) + min(
        HELD_FIRST_S * math.pow(HELD_GROWTH, exponent), HELD_MAX_S
    )


def _probe_at_s(ready: WaitingDevice, strikes: Sequence[Strike], now_s: float) -> float:
    """Unix seconds from which a struck device that waits may be tried among unstruck ones."""
    counted = score((strike for strike in strikes if strike.here), now_s)
    exponent = min(max(0.0, counted - 1.0), 32.0)
    return ready.received_at + min(PROBE_FIRST_S * math.pow(HELD_GROWTH, exponent), HELD_MAX_S)


def eligible(
    waiting: Sequence[WaitingDevice], standing: Standing, now_s: float
) -> tuple[list[WaitingDevice], float | None]:
    """(devices that no back-off holds, unstruck ones and their order first; the time at which the
    next one is let go, Unix seconds, or None)."""
    free, held = [], []
    for ready in waiting:
        until = held_until_s(standing.strikes.get(ready.session, ()), now_s)
        if until > now_s:
            held.append(until)
        else:
            free.append(ready)

    def order(ready: WaitingDevice) -> tuple[float, float]:
        counted = score(standing.strikes.get(ready.session, ()), now_s)
        partner = score(standing.partners.get(ready.session, ()), now_s)
        handicap = min(_PARTNER_HANDICAP_S * partner, _PARTNER_HANDICAP_MAX_S)
        return (counted if counted >= STRUCK_MIN else 0.0, ready.received_at + handicap)

    return sorted(free, key=order), min(held, default=None)


def tiers(
    free: Sequence[WaitingDevice], standing: Standing, rules: CohortRules, now_s: float
) -> Iterator[list[WaitingDevice]]:
    """Devices from which to choose a cohort, best first; the first tier that gives one counts.

    Args:
        free: as :func:`eligible` gave them.
    """
    strikes = {ready.session: standing.strikes.get(ready.session, ()) for ready in free}
    clean = [r for r in free if not is_struck(strikes[r.session], now_s)]
    struck = [r for r in free if is_struck(strikes[r.session], now_s)]
    probes = [r for r in struck if _probe_at_s(r, strikes[r.session], now_s) <= now_s]
    places = max(1, rules.size_min // _PROBES_SHARE)
    yield [*_apart(probes, strikes, now_s)[:places], *clean]
    if not struck:
        return
    room = max(0, max(rules.size_min, (len(free) + 1) // 2) - len(clean))
    apart = _apart(struck, strikes, now_s)
    yield [*clean, *apart[:room]]
    together = [*apart, *(ready for ready in struck if ready not in apart)]
    yield [*clean, *sorted(together[:room], key=struck.index)]
    yield list(free)


def _apart(
    struck: Iterable[WaitingDevice], strikes: Mapping[str, Sequence[Strike]], now_s: float
) -> list[WaitingDevice]:
    """Devices of which no two share a strike that still counts, the first ones kept."""
    kept: list[WaitingDevice] = []
    seen: set[str] = set()
    for ready in struck:
        cohorts = {s.cohort for s in strikes[ready.session] if is_struck((s,), now_s)}
        if cohorts.isdisjoint(seen):
            kept.append(ready)
            seen |= cohorts
    return kept
