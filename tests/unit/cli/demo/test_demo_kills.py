"""Who is killed in the demo: as many as asked for and permitted, in turn."""

import pytest

from secagg_cli.demo.kills import plan_kills


@pytest.mark.parametrize(
    ("clients", "fraction", "drops", "warned"),
    [(6, 0.3, 2, False), (4, 0.3, 1, False), (3, 0.3, 0, True), (6, 0.5, 2, True), (6, 0.0, 0, 0)],
)
def test_as_many_drop_as_asked_for_and_permitted(
    clients: int, fraction: float, drops: int, warned: bool
) -> None:
    plan, message = plan_kills(clients, fraction)
    assert plan.drops == drops
    assert plan.survivors_min == clients - drops
    assert bool(message) == bool(warned)


def test_every_device_has_its_turn_and_the_resumer_is_no_victim() -> None:
    plan, _ = plan_kills(6, 0.3)
    killed: set[int] = set()
    for number in range(1, 4):
        victims = plan.victims(number)
        assert len(victims) == 2
        assert plan.resumer(number) not in victims
        assert (plan.resumer(number) is None) == (number == 2)
        killed |= victims
        assert killed.isdisjoint(range(6 - 2 * number)), "the last devices come first"
    assert killed == set(range(6))


def test_without_drop_outs_nothing_is_killed() -> None:
    plan, _ = plan_kills(6, 0.0)
    assert plan.victims(1) == frozenset()
    assert plan.resumer(1) is None
