"""Cohorts on a sparse graph: exact under drop-outs, abort where too few agree, noise seeds."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import client, server
from secagg.context import removed_levels
from secagg.graph.harary import _circle
from secagg.keys import signing_key
from secagg.messages import KINDS, Deals, peek, sign
from secagg.simulation import (
    Aggregator,
    CohortResult,
    Drop,
    Hooks,
    LocalDevices,
    SimulatedTask,
    drive,
    make_devices,
    make_task,
    run_cohort,
)

SIZE, DEGREE, THRESHOLD = 130, 8, 5


def sparse_task(**rules: int) -> SimulatedTask:
    given = {"survivors_min": 80, "degree": DEGREE, "threshold": THRESHOLD, **rules}
    return make_task(SIZE, 3, slice_length=4, **given)


def one_hot(size: int) -> list[np.ndarray]:
    return [np.array([1, number, number**2], np.int64) for number in range(size)]


def around_the_circle(task: SimulatedTask) -> list[int]:
    """Enrolment numbers in the order in which ``run_cohort``'s cohort stands on its circle."""
    devices = make_devices(task, one_hot(SIZE))
    aggregator = Aggregator(
        task, [d.advert for d in devices], cohort=bytes(32), attempt=0, hooks=Hooks()
    )
    graph = aggregator.state.facts.graph
    assert not graph.is_complete
    order, _ = _circle(graph.order_seed, SIZE)
    return [aggregator.numbers[index] for index in order]


def exact(result: CohortResult) -> bool:
    assert isinstance(result.state, server.Released), result.state
    assert result.total is not None
    expected = sum(one_hot(SIZE)[number] for number in result.survivors)
    return bool((result.total == expected).all())


@pytest.mark.slow
def test_drop_outs_at_every_step_leave_the_sum_exact() -> None:
    """Fourteen devices vanish, two at each moment, spread so that nobody loses two neighbours."""
    task = sparse_task()
    lost = around_the_circle(task)[:: DEGREE + 1][:14]
    moments = [drop for drop in Drop if drop != Drop.NEVER] * 2
    drops = dict(zip(lost, moments, strict=True))
    result = run_cohort(task, one_hot(SIZE), drops=drops)
    assert exact(result)
    without_vector = {number for number, drop in drops.items() if drop <= Drop.UPLOAD}
    assert set(result.survivors) == set(range(SIZE)) - without_vector


@pytest.mark.slow
def test_each_device_deals_to_its_neighbours_alone_and_reveals_one_share_each() -> None:
    task = sparse_task()
    sizes = set()

    def upward(number: int, message: bytes) -> list[bytes]:
        content, _ = peek(message, *KINDS)
        if isinstance(content, Deals):
            sizes.add(len(content.deals))
        return [message]

    assert exact(run_cohort(task, one_hot(SIZE), hooks=Hooks(upward=upward)))
    assert sizes == {DEGREE}


@pytest.mark.slow
def test_a_neighbourhood_below_its_threshold_ends_the_cohort() -> None:
    """One device keeps t - 1 neighbours: what it masked with them could not be opened."""
    task = sparse_task()
    around = around_the_circle(task)[1 : DEGREE - THRESHOLD + 2]
    result = run_cohort(task, one_hot(SIZE), drops=dict.fromkeys(around, Drop.UPLOAD))
    assert isinstance(result.state, server.Aborted)
    assert result.state.reason == "too-few-vectors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drop", "reason"),
    [(Drop.UPLOAD, "too-few-vectors"), (Drop.CONFIRM, "too-few-confirmations")],
)
def test_a_sum_that_too_little_of_the_roster_confirms_is_not_opened(
    drop: Drop, reason: str
) -> None:
    """With c = 60, more than (130 + 60) / 2 must confirm: 97 do, 87 do not, and either way every
    neighbourhood has its threshold."""
    task = sparse_task(corrupt_max=60)
    circle = around_the_circle(task)
    few = run_cohort(task, one_hot(SIZE), drops=dict.fromkeys(circle[1::3], drop))
    assert isinstance(few.state, server.Aborted)
    assert few.state.reason == reason
    assert exact(run_cohort(task, one_hot(SIZE), drops=dict.fromkeys(circle[1::4], drop)))


def test_a_cohort_of_at_most_128_devices_has_the_complete_graph_under_the_same_task() -> None:
    task = make_task(
        131, 3, slice_length=4, size_min=6, survivors_min=4, degree=DEGREE, threshold=THRESHOLD
    )
    devices = make_devices(task, one_hot(131))[:6]
    result = run_cohort(task, one_hot(6), devices=devices)
    assert isinstance(result.state, server.Released)
    assert result.state.facts.graph.is_complete
    assert result.state.facts.threshold == 3


# -- removable noise -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "levels"), [(0, (0, 1, 2)), (1, (1, 2)), (2, (2,)), (3, (2,)), (4, ()), (5, ())]
)
def test_levels_that_the_survivors_do_not_need_are_opened(
    lost: int, levels: tuple[int, ...]
) -> None:
    assert removed_levels((1, 3, 5), 20, 20 - lost) == levels


class Plans(Aggregator):
    """Keeps the plan of the unmasking."""

    def _unmask(self, plan):
        self.plan = plan
        super()._unmask(plan)


@pytest.mark.parametrize("drop", [Drop.ANNOUNCE, Drop.UPLOAD])
@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_seeds_of_noise_are_opened_for_survivors_by_level_and_are_the_right_ones(
    lost: int, drop: Drop
) -> None:
    task = make_task(8, 3, slice_length=4, survivors_min=5, removable_drops=(1, 2, 3))
    devices = make_devices(task, one_hot(8), drops=dict.fromkeys(range(lost), drop))
    drawn: dict[tuple[bytes, int], bytes] = {}

    def note(number: int, message: bytes) -> list[bytes]:
        state = devices[number].state
        if isinstance(state, client.Shared):
            own = devices[number].config.certificate.identity_key
            for level, seed in enumerate(state.noise_seeds):
                drawn[own, level] = seed.reveal()
        return [message]

    pool = LocalDevices(devices)
    aggregator = Plans(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks(downward=note)
    )
    result = drive(aggregator, pool)
    assert isinstance(result.state, server.Released)
    opened = {(item.owner, item.level): item.seed for item in aggregator.plan.noise_seeds}
    survivors = result.state.survivors
    assert set(opened) == {(owner, level) for owner in survivors for level in range(lost, 3)}
    for (owner, level), seed in opened.items():
        assert seed.reveal() == drawn[result.state.facts.identity(owner), level]
    assert len(set(drawn.values())) == 8 * 3, "every seed is drawn anew"


def test_more_drop_outs_than_the_noise_allows_end_the_cohort() -> None:
    task = make_task(8, 3, slice_length=4, survivors_min=4, removable_drops=(1, 2))
    result = run_cohort(task, one_hot(8), drops=dict.fromkeys(range(3), Drop.UPLOAD))
    assert isinstance(result.state, server.Aborted)
    assert result.state.reason == "too-few-vectors"


def test_a_dealer_whose_noise_shares_do_not_give_its_commitment_is_named() -> None:
    task = make_task(8, 3, slice_length=4, survivors_min=5, removable_drops=(2,))
    liar = task.devices[3]

    def upward(number: int, message: bytes) -> list[bytes]:
        content, _ = peek(message, *KINDS)
        if number != 3 or not isinstance(content, Deals):
            return [message]
        lie = Deals(content.ctx, content.deals, (bytes(32),))
        return [sign(lie, content.ctx, signing_key(liar.identity))]

    result = run_cohort(task, one_hot(8), hooks=Hooks(upward=upward))
    assert isinstance(result.state, server.Aborted)
    assert result.state.reason == "dealer-noise-seed"
    assert result.ended.culprits == (liar.certificate.identity_key,)


@pytest.mark.parametrize("commitments", [(), (b"short",), (bytes(32),) * 2])
def test_a_device_that_commits_to_other_seeds_than_asked_costs_itself(
    commitments: tuple[bytes, ...],
) -> None:
    task = make_task(8, 3, slice_length=4, survivors_min=5, removable_drops=(2,))

    def upward(number: int, message: bytes) -> list[bytes]:
        content, _ = peek(message, *KINDS)
        if number != 3 or not isinstance(content, Deals):
            return [message]
        lie = Deals(content.ctx, content.deals, commitments)
        return [sign(lie, content.ctx, signing_key(task.devices[3].identity))]

    result = run_cohort(task, one_hot(8), hooks=Hooks(upward=upward))
    assert (3, "deals-commitments") in result.refused
    assert isinstance(result.state, server.Released)
    assert 3 not in result.survivors
