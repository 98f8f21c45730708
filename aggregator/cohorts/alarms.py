"""Tells the log of cohorts that go no further, of which nobody complains by a request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.progress import progress_of
from aggregator.logs import get_logger

_log = get_logger("alarms")
_SURE_S = 10.0  # stuck for so long: a clock that was set makes nobody stuck for a moment
_AGAIN_S = 300.0


class Stuck:
    """``clock``: Unix seconds. ``steady``: seconds of a clock that is never set."""

    def __init__(
        self, clock: Callable[[], float], steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._steady = steady
        self._tell_at: dict[tuple[str, str], float] = {}  # by cohort and phase

    def look(self, cohorts: Iterable[Cohort]) -> None:
        """Tell of those that are stuck, again every few minutes."""
        now, tell_at = self._steady(), {}
        for cohort in cohorts:
            if cohort.over or not progress_of(cohort).is_stuck(self._clock()):
                continue
            phase = cohort.state.phase
            at = self._tell_at.get((cohort.id, phase), now + _SURE_S)
            if now >= at:
                at = now + _AGAIN_S
                _log.error(
                    "cohort-stuck",
                    cohort=cohort.id,
                    task=cohort.task.name,
                    phase=phase,
                    failed=cohort.failed,
                    remedy="Look for failures with this cohort above, mend disk or database, then "
                    "restart this replica: it goes on from its log.",
                )
            tell_at[cohort.id, phase] = at
        self._tell_at = tell_at
