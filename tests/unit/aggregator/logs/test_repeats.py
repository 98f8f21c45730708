"""The same failure again and again takes a few lines, and a count."""

from __future__ import annotations

import pytest

from aggregator import logs
from aggregator.logs.repeats import ALL_MAX, SAME_MAX, WINDOW_S, LeftOut, Repeats
from tests.kits.log_lines import lines, of


def test_a_failure_has_some_lines_in_a_window_and_then_a_count() -> None:
    repeats: Repeats[str] = Repeats()
    written = [repeats.admit("disk", 0.1 * n)[0] for n in range(100)]
    assert written.count(True) == SAME_MAX
    assert repeats.admit("database", 11.0) == (True, [])  # another failure is not held back
    admitted, ended = repeats.admit("disk", WINDOW_S + 1)
    assert admitted
    assert ended == [LeftOut("disk", 100 - SAME_MAX, WINDOW_S + 1)]
    assert repeats.rest(WINDOW_S + 2) == []


def test_what_was_left_out_last_is_told_at_the_end() -> None:
    repeats: Repeats[str] = Repeats()
    for _ in range(9):
        repeats.admit("disk", 0.0)
    assert [left.count for left in repeats.rest(1.0)] == [9 - SAME_MAX]


def test_failures_of_many_kinds_have_an_allowance_together() -> None:
    repeats: Repeats[int] = Repeats()
    written = [repeats.admit(kind, 0.0)[0] for kind in range(5_000)]
    assert written.count(True) == ALL_MAX
    assert len(repeats._counts) <= 1_000
    _, ended = repeats.admit(0, WINDOW_S + 1)
    assert ended == [LeftOut(None, 5_000 - ALL_MAX, WINDOW_S + 1)]


def test_refusals_crowd_out_no_failure_and_phases_are_all_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure()
    log = logs.get_logger("test")
    for number in range(1_000):
        log.info("refused", reason=f"r{number}")
        log.info("phase", cohort=str(number))
    for _ in range(20):
        log.error("add-failed", cohort="c")
    logs.tell_left_out()
    told = lines(capsys)
    assert len(of("refused", told)) == ALL_MAX
    assert len(of("phase", told)) == 1_000
    assert len(of("add-failed", told)) == SAME_MAX
    left_out = {line.get("of_event"): line["count"] for line in of("lines-left-out", told)}
    assert left_out == {"add-failed": 20 - SAME_MAX, None: 1_000 - ALL_MAX}


def test_what_is_left_out_is_told_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("ERROR")
    for _ in range(9):
        logs.get_logger("test").error("add-failed")
    logs.tell_left_out()
    logs.configure()
    (told,) = of("lines-left-out", lines(capsys))
    assert told["count"] == 9 - SAME_MAX
