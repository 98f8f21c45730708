"""Which of the devices that have reported in make a cohort.

A synchronous cohort is the first ``size_max`` of one version. A buffer (FedBuff) admits several
versions, but none with fewer than ``model_min`` devices behind it: every device refuses such a
roster, since a model that only a few trained on could take their updates apart. So versions are
whole groups; a device whose group is too small waits, and keeps nobody else waiting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from secagg.manifest import CohortRules

_VERSIONS_MAX = 8  # combined in one cohort; the oldest groups, which expire first


@dataclass(frozen=True)
class Ready:
    """A device that waits. ``received_at``: Unix seconds."""

    session: str
    advert: bytes
    version: int
    received_at: float


def choose(waiting: Sequence[Ready], rules: CohortRules) -> tuple[Ready, ...]:
    """The largest cohort that the rules admit, earliest arrivals first; empty if there is none.

    Of cohorts of one size the one with more versions is taken, then the one with older versions.

    Args:
        waiting: of admissible versions only, in order of arrival.
    """
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
    waiting: Sequence[Ready], versions: Sequence[int], size: int, floor: int
) -> tuple[Ready, ...]:
    """The first ``floor`` of each version, then whoever came first."""
    taken = Counter[int]()
    first, rest = [], []
    for ready in waiting:
        if ready.version not in versions:
            continue
        (first if taken[ready.version] < floor else rest).append(ready)
        taken[ready.version] += 1
    chosen = {ready.session for ready in (*first, *rest[: size - len(first)])}
    return tuple(ready for ready in waiting if ready.session in chosen)
