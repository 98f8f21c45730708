"""A cohort that is stuck is told, with what to do."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from aggregator import logs
from aggregator.cohorts import alarms
from aggregator.cohorts.alarms import Stuck
from aggregator.cohorts.progress import OVERDUE_S, UNMASKING_MAX_S, Progress
from tests.kits.log_lines import lines


@pytest.mark.parametrize(
    ("deadline_s", "stuck_s"), [(60.0, 60 + OVERDUE_S), (math.inf, UNMASKING_MAX_S)]
)
def test_a_cohort_beyond_its_deadline_is_told_now_and_then(
    deadline_s: float,
    stuck_s: float,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logs.configure()
    at = [0.0]
    stuck = Stuck(clock=lambda: at[0], steady=lambda: at[0])
    task, state = SimpleNamespace(name="t"), SimpleNamespace(phase="masking")
    cohort: Any = SimpleNamespace(id="c", task=task, over=False, failed=True, state=state)
    progress = Progress("masking", 0, 0, deadline_s, since_s=0.0)
    monkeypatch.setattr(alarms, "progress_of", lambda _: progress)
    for at[0] in (0.0, stuck_s + 1, stuck_s + 2):
        stuck.look([cohort])
    assert lines(capsys) == []  # perhaps only the clock was set
    for at[0] in (stuck_s + 11, stuck_s + 12, stuck_s + 300):
        stuck.look([cohort])
    (line,) = lines(capsys)
    assert (line["event"], line["cohort"], line["phase"]) == ("cohort-stuck", "c", "masking")
    assert (line["task"], line["failed"]) == ("t", True)
    assert line["remedy"]
    at[0] = stuck_s + 312
    stuck.look([cohort])
    assert len(lines(capsys)) == 1
    state.phase = "confirming"  # it goes on
    stuck.look([cohort])
    cohort.over = True
    at[0] += 600
    stuck.look([cohort])
    assert lines(capsys) == []
