"""Different survivor sets to different arcs of a sparse ring.

Each arc is told that three devices in its middle dropped, so every device sees 127 survivors of
130, and at least t of its neighbours confirm the very set that it was shown. Yet all fifteen
dropped devices come off, and a sum of 115 opens where nobody agreed to less than 127. More than
half of the *roster* cannot confirm two sets: that stops it.
"""

from __future__ import annotations

import numpy as np
import pytest

from secagg.graph import harary, parameters
from secagg.simulation import make_task
from tests.kits.adversary import Adversary, failed_reason, plain_vector

pytestmark = pytest.mark.slow

SIZE, DEGREE, THRESHOLD = 130, 8, 5
ARCS, DROPPED_EACH, SURVIVORS_MIN = 5, 3, 127


class Arcs(Adversary):
    """Shows each arc of the circle a set of its own."""

    def __init__(self) -> None:
        task = make_task(
            SIZE,
            3,
            slice_length=4,
            survivors_min=SURVIVORS_MIN,
            degree=DEGREE,
            threshold=THRESHOLD,
        )
        super().__init__(task)
        order, positions = harary._circle(self.graph.order_seed, SIZE)
        arc = SIZE // ARCS
        middles = [
            [order[number * arc + arc // 2 + at] for at in range(-1, DROPPED_EACH - 1)]
            for number in range(ARCS)
        ]
        self.dropped = tuple(sorted(index for middle in middles for index in middle))
        self.alive = tuple(index for index in self.everyone if index not in self.dropped)
        self.arc_of = {index: positions[index] // arc for index in self.everyone}
        self.shown = [
            tuple(index for index in self.everyone if index not in middle) for middle in middles
        ]

    def attack(self) -> np.ndarray | None:
        self.until_masked()
        self.confirm(lambda index: self.shown[self.arc_of[index]], only=self.alive)
        confirmed = list(self.confirmations)
        self.unmask(
            lambda index: [c for c in confirmed if self.arc_of[c] == self.arc_of[index]],
            only=self.alive,
        )
        return self.open_sum(self.alive, self.dropped, THRESHOLD)


def test_where_neighbours_alone_confirm_a_smaller_sum_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened build asks for t neighbours and nothing of the roster."""
    monkeypatch.setattr(parameters, "confirmations_needed", lambda size, corrupt: 0)
    adversary = Arcs()
    opened = adversary.attack()
    assert all(len(shown) == SURVIVORS_MIN for shown in adversary.shown)
    assert len(adversary.alive) == SIZE - ARCS * DROPPED_EACH < SURVIVORS_MIN
    assert opened is not None
    vectors = [plain_vector(adversary.task, adversary.devices[i]) for i in adversary.alive]
    assert opened.tolist() == sum(vectors).tolist()


def test_no_arc_unmasks_without_more_than_half_of_the_roster() -> None:
    adversary = Arcs()
    assert adversary.attack() is None
    assert not adversary.shares
    reasons = {failed_reason(adversary.devices[index]) for index in adversary.alive}
    assert reasons == {"confirmations-too-few"}


def test_honest_devices_of_one_set_do_unmask() -> None:
    """The same cohort, shown one set: the refusal above is the rule's, not the test's."""
    adversary = Arcs()
    adversary.until_masked()
    adversary.confirm(lambda _: adversary.shown[0], only=adversary.shown[0])
    majority = adversary.shown[0]
    adversary.unmask(lambda _: majority, only=majority)
    dropped = tuple(index for index in adversary.everyone if index not in majority)
    opened = adversary.open_sum(majority, dropped, THRESHOLD)
    assert opened is not None
    vectors = [plain_vector(adversary.task, adversary.devices[i]) for i in majority]
    assert opened.tolist() == sum(vectors).tolist()
