"""Cohorts are of devices that trust each other, nobody starves, and a refusal binds its sender."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from aggregator.cohorts.choosing import ANYBODY, Clash, WaitingDevice, choose
from secagg.manifest import CohortRules


def rules(size_min: int, size_max: int) -> CohortRules:
    return CohortRules(
        size_min=size_min, size_max=size_max, survivors_min=2, corrupt_max=0, silent_max=0
    )


def device(number: int, partner: str, trusted: str = "", at: float | None = None) -> WaitingDevice:
    """``trusted``: one letter a partner; empty: what an advert says that trusts its own alone."""
    return WaitingDevice(
        session=f"s{number}",
        advert=b"",
        version=1,
        received_at=float(number) if at is None else at,
        identity=f"i{number}",
        partner=partner,
        trusted=frozenset(trusted),
    )


def devices(*shown: str) -> list[WaitingDevice]:
    """``"A:AB"``: a device of partner A that accepts those of A and B."""
    return [device(number, *name.split(":")) for number, name in enumerate(shown)]


def numbers(chosen: Sequence[WaitingDevice]) -> tuple[int, ...]:
    return tuple(int(ready.session[1:]) for ready in chosen)


def trust_each_other(group: Sequence[WaitingDevice]) -> bool:
    return all(
        one.partner in other.accepts and other.partner in one.accepts
        for one, other in combinations(group, 2)
    )


# -- trust -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "chosen"),
    [
        (("A", "A", "A", "B"), (0, 1, 2)),
        (("A", "B", "B", "A", "B"), (1, 2, 4)),
        (("A:AB", "A:AB", "B:AB"), (0, 1, 2)),
        (("A:AB", "A:AB", "B", "B:B", "A:AB"), (0, 1, 4)),  # trust that is not returned
        (("A", "A:AB", "B:AB", "B:AB", "A:AB"), (1, 2, 3, 4)),  # one that trusts its own alone
        (("A:AB", "B:ABC", "C:BC", "B:ABC", "C:BC"), (1, 2, 3, 4)),  # a chain: its longer end
        (("A:ABC", "B:ABC", "C:ABC"), (0, 1, 2)),
        (("A:AB", "B:BC", "C:CA"), ()),
        (("A:ABX", "B:ABY", "A:ABZ"), (0, 1, 2)),  # what they have in common is enough
        (("A", "B", "C", "D"), ()),
    ],
)
def test_a_cohort_is_the_largest_group_that_trusts_each_other(
    shown: tuple[str, ...], chosen: tuple[int, ...]
) -> None:
    assert numbers(choose(devices(*shown), rules(3, 9))) == chosen


def test_no_group_is_larger_and_every_group_trusts_each_other() -> None:
    generator = np.random.default_rng(11)
    formed = 0
    for _ in range(200):
        ready = []
        for number in range(int(generator.integers(0, 9))):
            own = "ABCD"[generator.integers(4)]
            others = "".join(p for p in "ABCD" if p == own or generator.random() < 0.5)
            ready.append(device(number, own, others))
        largest = max(
            (
                len(group)
                for size in range(3, len(ready) + 1)
                for group in combinations(ready, size)
                if trust_each_other(group)
            ),
            default=0,
        )
        chosen = choose(ready, rules(3, 9))
        assert len(chosen) == largest
        assert trust_each_other(chosen)
        formed += bool(chosen)
    assert formed > 60


def test_devices_cannot_make_the_choice_expensive() -> None:
    """Each of a thousand devices says that it trusts another set of the 128 partners of a task."""
    generator = np.random.default_rng(3)
    names = [f"p{number}" for number in range(128)]
    strange = []
    for number in range(1_000):
        own = names[int(generator.integers(128))]
        trusted = {own, *generator.choice(names, size=64, replace=False).tolist()}
        strange.append(
            WaitingDevice(f"s{number}", b"", 1, 0.0, f"i{number}", own, frozenset(trusted))
        )
    plain = [
        WaitingDevice(f"s{number}", b"", 1, 1.0, f"i{number}", "p0")
        for number in range(1_000, 1_020)
    ]
    chosen = choose([*strange, *plain], rules(20, 100))
    assert len(chosen) >= 20
    assert trust_each_other(chosen)


def test_a_small_group_takes_turns_with_a_large_one() -> None:
    """The large one reports in again before each cohort; sessions are new, devices are not."""
    cohorts: list[str] = []
    waiting = [device(n, "A") for n in range(10)] + [device(n, "B") for n in range(10, 13)]
    opened_at = 0.0
    for turn in range(1, 7):
        now = 100.0 * turn
        chosen = choose(waiting, rules(3, 10), last_opened_at=opened_at)
        (partner,) = {ready.partner for ready in chosen}
        cohorts.append(partner)
        opened_at = now
        again = [device(int(r.session[1:]), r.partner, at=now + 1) for r in chosen]
        waiting = [ready for ready in waiting if ready not in chosen] + again
    assert cohorts == ["A", "B", "A", "B", "A", "B"]


def test_who_was_passed_over_and_fits_nowhere_keeps_nobody_waiting() -> None:
    waiting = [device(0, "C"), device(1, "B"), *(device(n, "A") for n in range(2, 8))]
    chosen = choose(waiting, rules(3, 10), last_opened_at=50.0)
    assert numbers(chosen) == tuple(range(2, 8))


# -- clashes ---------------------------------------------------------------------------------------


def chosen_with(count: int, size_min: int, *clashes: Clash) -> tuple[int, ...]:
    ready = [device(number, "A") for number in range(count)]
    return numbers(choose(ready, rules(size_min, count), clashes=frozenset(clashes)))


def test_who_objects_gives_way() -> None:
    assert chosen_with(6, 4, ("i0", "i5")) == (1, 2, 3, 4, 5)
    assert chosen_with(6, 4, ("i5", "i0")) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("liars", [1, 2, 3])
def test_liars_keep_themselves_out_and_nobody_else(liars: int) -> None:
    """However many others each of them objects to, and to each other."""
    lying = [f"i{number}" for number in range(liars)]
    clashes = [(liar, f"i{other}") for liar in lying for other in range(8) if liar != f"i{other}"]
    assert chosen_with(8, 4, *clashes) == tuple(range(liars, 8))


def test_a_clash_with_somebody_who_is_not_there_means_nothing() -> None:
    assert chosen_with(5, 4, ("i0", "elsewhere"), ("elsewhere", "i1")) == (0, 1, 2, 3, 4)


def test_where_nearly_all_object_to_one_that_one_is_left_out() -> None:
    """Its certificate has expired, say: without those who object there is no cohort at all."""
    assert chosen_with(6, 4, *((f"i{n}", "i3") for n in (0, 1, 2, 4, 5))) == (0, 1, 2, 4, 5)


def test_who_refuses_rosters_as_such_waits() -> None:
    assert chosen_with(6, 4, ("i2", ANYBODY)) == (0, 1, 3, 4, 5)
    assert chosen_with(4, 4, ("i2", ANYBODY)) == ()


def test_the_two_of_a_clash_are_never_in_one_cohort() -> None:
    generator = np.random.default_rng(8)
    for _ in range(300):
        count = int(generator.integers(4, 9))
        clashes = [
            (f"i{a}", f"i{b}") for a, b in generator.integers(0, count, (4, 2)).tolist() if a != b
        ]
        inside = {f"i{number}" for number in chosen_with(count, 3, *clashes)}
        assert not [clash for clash in clashes if inside.issuperset(clash)]
