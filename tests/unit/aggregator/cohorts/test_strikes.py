"""Decay, order and back-off of devices in question, number by number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.cohorts.choosing import WaitingDevice, choose
from aggregator.cohorts.faults import LATE_S, fault_of
from aggregator.cohorts.strikes import (
    HALF_LIFE_S,
    HELD_FIRST_S,
    HELD_MAX_S,
    PROBE_FIRST_S,
    Standing,
    Strike,
    eligible,
    forgiven,
    held_until_s,
    is_struck,
    score,
    tiers,
)
from secagg.manifest import CohortRules

NOW_S = 1_000_000.0
RULES = CohortRules(size_min=4, size_max=4, survivors_min=3, corrupt_max=0, silent_max=0)


def ready(name: str, at: float = NOW_S) -> WaitingDevice:
    return WaitingDevice(name, b"", 0, at)


def chosen(
    waiting: list[WaitingDevice], standing: Standing, rules: CohortRules = RULES
) -> list[str]:
    free, _ = eligible(waiting, standing, NOW_S)
    found = (choose(tier, rules) for tier in tiers(free, standing, rules, NOW_S))
    return sorted(r.session for r in next((members for members in found if members), ()))


def once(cohort: str) -> tuple[Strike, ...]:
    return (Strike(cohort, NOW_S - 1),)


def test_a_strike_halves_each_half_life() -> None:
    strikes = (Strike("a", 0.0), Strike("b", HALF_LIFE_S, 0.5))
    assert score(strikes, HALF_LIFE_S) == 1.0
    assert score(strikes, 2 * HALF_LIFE_S) == 0.5
    assert is_struck(strikes, HALF_LIFE_S)
    assert not is_struck(strikes, 2 * HALF_LIFE_S)


def test_a_release_halves_one_strike_and_four_releases_halve_two() -> None:
    assert forgiven(1.0, 1) == 0.5
    weight = 1.0
    for _ in range(4):
        weight = forgiven(weight, 2)
    assert weight == pytest.approx(0.5)


def test_one_strike_holds_nobody_back_and_more_do_four_times_longer_each() -> None:
    at = NOW_S
    assert held_until_s((Strike("a", at),), at) == 0.0
    strikes = [Strike(str(n), at) for n in range(20)]
    waits = [held_until_s(strikes[:count], at) - at for count in (2, 3, 4, 20)]
    assert waits == [4 * HELD_FIRST_S, 16 * HELD_FIRST_S, 64 * HELD_FIRST_S, HELD_MAX_S]


def test_unstruck_devices_go_first_whoever_came_first() -> None:
    waiting = [ready(f"s{n}", NOW_S - 60 + n) for n in range(4)]
    waiting += [ready(f"u{n}", NOW_S - 30 + n) for n in range(4)]
    standing = Standing({f"s{n}": once("x") for n in range(4)})
    assert chosen(waiting, standing) == ["u0", "u1", "u2", "u3"]


def test_one_struck_device_that_waited_long_is_tried_among_the_others() -> None:
    waiting = [ready(f"s{n}", NOW_S - PROBE_FIRST_S - 9 + n) for n in range(4)]
    waiting += [ready(f"u{n}", NOW_S - 30 + n) for n in range(4)]
    standing = Standing({f"s{n}": once("x") for n in range(4)})
    assert chosen(waiting, standing) == ["s0", "u0", "u1", "u2"]


def test_devices_that_share_a_strike_go_apart_where_others_wait() -> None:
    waiting = [ready(f"{cohort}{n}") for cohort in "abcd" for n in range(2)]
    standing = Standing({r.session: once(r.session[0]) for r in waiting})
    members = chosen(waiting, standing)
    assert len({name[0] for name in members}) == 4


def test_devices_that_share_a_strike_form_a_cohort_if_no_others_wait() -> None:
    waiting = [ready(f"a{n}") for n in range(4)]
    standing = Standing({r.session: once("a") for r in waiting})
    assert chosen(waiting, standing) == ["a0", "a1", "a2", "a3"]


def test_the_least_struck_fill_up() -> None:
    waiting = [ready("worst", NOW_S - 9), ready("once", NOW_S - 1), *(ready(n) for n in "xyz")]
    standing = Standing(
        {
            "worst": [Strike("p", NOW_S - HELD_MAX_S), Strike("q", NOW_S - HELD_MAX_S)],
            "once": once("r"),
        }
    )
    assert chosen(waiting, standing) == ["once", "x", "y", "z"]


def test_half_of_those_that_wait_are_tried_where_all_are_struck() -> None:
    wide = CohortRules(size_min=4, size_max=64, survivors_min=3, corrupt_max=0, silent_max=0)
    waiting = [ready(f"{n:02}") for n in range(32)]
    standing = Standing({r.session: once("x") for r in waiting})
    assert len(chosen(waiting, standing, wide)) == 16


def test_held_devices_say_when_they_are_let_go() -> None:
    strikes = [Strike("a", NOW_S), Strike("b", NOW_S)]
    waiting = [ready("held"), ready("free")]
    free, again_s = eligible(waiting, Standing({"held": strikes}), NOW_S)
    assert [r.session for r in free] == ["free"]
    assert again_s == held_until_s(strikes, NOW_S) > NOW_S


def test_devices_of_a_struck_partner_come_after_those_of_others() -> None:
    waiting = [ready("theirs", NOW_S - 10), ready("ours", NOW_S)]
    standing = Standing({}, {"theirs": [Strike("x", NOW_S)]})
    free, _ = eligible(waiting, standing, NOW_S)
    assert [r.session for r in free] == ["ours", "theirs"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),  # strikes
            st.integers(0, 5),  # shared with
            st.integers(0, 100_000),  # seconds since
        ),
        max_size=24,
    )
)
def test_strikes_never_stop_a_task_for_good(fleet: list[tuple[int, int, int]]) -> None:
    """Whoever waits: once every back-off is over, a cohort forms if there are enough devices."""
    strikes = {
        str(n): [Strike(f"{shared}-{k}", NOW_S - ago) for k in range(count)]
        for n, (count, shared, ago) in enumerate(fleet)
    }
    waiting = [ready(str(n)) for n in range(len(fleet))]
    later = NOW_S + HELD_MAX_S
    free, again_s = eligible(waiting, Standing(strikes), later)
    assert again_s is None
    assert len(free) == len(fleet)
    found = [choose(tier, RULES) for tier in tiers(free, Standing(strikes), RULES, later)]
    assert any(found) == (len(fleet) >= RULES.size_min)


@pytest.mark.parametrize(
    ("reason", "terms", "fault"),
    [
        ("dealer-self-seed", {}, "devices"),
        ("seal-invalid", {"failed": True}, "devices"),
        ("check-coordinates", {}, "devices"),
        ("check-coordinates", {"failed": True}, "unknown"),
        ("noise-measured-missing", {}, "devices"),
        ("too-few-vectors", {}, "devices"),
        ("too-few-vectors", {"restarted": True}, "unknown"),
        ("too-few-shares", {"failed": True}, "unknown"),
        ("too-few-confirmations", {"late_s": LATE_S + 1}, "service"),
        ("release-failed", {}, "service"),
        ("record-too-large", {}, "service"),
        ("budget-exhausted", {}, "service"),
    ],
)
def test_whose_fault_it_was(reason: str, terms: dict[str, object], fault: str) -> None:
    fields = {"late_s": 0.0, "failed": False, "restarted": False, **terms}
    assert fault_of(reason, **fields) == fault  # type: ignore[arg-type]
