"""At which step an ended cohort lost how many devices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aggregator.cohorts.drop_outs import lost_at
from secagg.messages import KINDS, Confirmation, Deals, Unmask
from secagg.server import Aborted, Released

SIZE = 10


def accepted(dealt: int, confirmed: int = 0, unmasked: int = 0) -> dict[int, dict[int, bytes]]:
    counts = {Deals: dealt, Confirmation: confirmed, Unmask: unmasked}
    return {KINDS[kind][0]: dict.fromkeys(range(count), b"") for kind, count in counts.items()}


def aborted(reason: str, dealt: int, **fields: Any) -> Aborted:
    counts = {name: fields.pop(name, 0) for name in ("confirmed", "unmasked")}
    given = {name: tuple(range(count)) for name, count in fields.items()}
    facts: Any = SimpleNamespace(size=SIZE)
    return Aborted(facts=facts, accepted=accepted(dealt, **counts), reason=reason, **given)


CASES = [
    (aborted("too-few-dealers", 3, silent=7), {"sharing": 7}),
    (aborted("too-few-ready", 8, silent=6), {"sharing": 2, "checking": 6}),
    (
        aborted("too-few-vectors", 9, masking_set=8, silent=5),
        {"sharing": 1, "checking": 1, "masking": 5},
    ),
    (
        aborted("too-few-confirmations", 10, masking_set=10, silent=4, confirmed=3),
        {"sharing": 0, "checking": 0, "masking": 3, "confirming": 4},
    ),
    (
        aborted("too-few-shares", 10, masking_set=9, silent=4, confirmed=6, unmasked=4),
        {"sharing": 0, "checking": 1, "masking": 1, "confirming": 2, "unmasking": 4},
    ),
    # What the service broke off lost nobody at that step.
    (aborted("task-paused", 4), {}),
    (aborted("release-failed", 10, masking_set=9), {"sharing": 0, "checking": 1}),
    (
        aborted("check-coordinates", 10, masking_set=9, summed=8, confirmed=7),
        {"sharing": 0, "checking": 1, "masking": 1, "confirming": 1},
    ),
]


@pytest.mark.parametrize(("state", "lost"), CASES, ids=[state.reason for state, _ in CASES])
def test_an_abort_lost_devices_at_the_steps_that_waited_for_them(
    state: Aborted, lost: dict[str, int]
) -> None:
    assert lost_at(state) == lost


def test_who_had_not_answered_when_a_release_was_complete_is_not_lost() -> None:
    facts: Any = SimpleNamespace(size=SIZE)
    state = Released(
        facts=facts,
        accepted=accepted(9, confirmed=6, unmasked=5),
        masking_set=tuple(range(8)),
        survivors=tuple(range(7)),
        release=1,
        leaf_index=1,
    )
    assert lost_at(state) == {"sharing": 1, "checking": 1, "masking": 1, "confirming": 1}
