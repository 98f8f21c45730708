"""When a budget ends, at the pace of the newest charges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from aggregator.http.dashboard.forecast import ends_at


def task(times: list[float], releases_max: int, state: str = "open", reserved: int = 0) -> Any:
    return SimpleNamespace(
        state=state,
        charges=len(times) + reserved,
        releases_max=releases_max,
        releases=tuple(
            SimpleNamespace(release=number, released_at=at) for number, at in enumerate(times, 1)
        ),
    )


@pytest.mark.parametrize(
    ("seen", "end"),
    [
        (task([100.0, 110.0, 130.0], 5), 160.0),
        (task([0.0, *(1_000.0 + n for n in range(8))], 12), 1_010.0),  # the newest eight
        (task([100.0, 110.0], 5, reserved=1), 140.0),  # what is reserved is spent next
        (task([100.0], 5), None),
        (task([100.0, 110.0], 2), None),
        (task([100.0, 110.0], 5, state="paused"), None),
    ],
)
def test_a_budget_ends_at_the_pace_of_its_newest_charges(seen: Any, end: float | None) -> None:
    assert ends_at(seen) == end
