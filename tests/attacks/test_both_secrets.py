"""Attacks that want both secrets of one device, or a smaller sum than promised."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import client, messages, ring
from secagg.client import checks
from secagg.graph import parameters
from secagg.keys import signing_key
from secagg.simulation import SimulatedTask, make_task
from tests.kits.adversary import Adversary, failed_reason, plain_vector

CLIENTS = 6  # k = 5, no corrupt device: t = 3


def task(own_minimum: int = 2, survivors_min: int = 3) -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=survivors_min, own_minimum=own_minimum)


def read_from_both_secrets(adversary: Adversary, victim: int, threshold: int) -> np.ndarray | None:
    self_seed = adversary.self_seed(victim, threshold)
    mask_secret = adversary.mask_secret(victim, threshold)
    if self_seed is None or mask_secret is None:
        return None
    others = [other for other in adversary.everyone if other != victim]
    seeds = {other: adversary.pair_seed_from(victim, mask_secret, other) for other in others}
    return adversary.read_vector(victim, self_seed, seeds)


# -- one device listed as survivor to some and as dropped to others ------------------------------


def alive_here_and_dead_there(adversary: Adversary) -> None:
    """Half of the devices are told that device 0 survived, half that it dropped."""
    adversary.until_masked()
    here, there = (0, 1, 2), (3, 4, 5)
    side = {index: here if index in here else there for index in adversary.everyone}
    adversary.confirm(lambda index: side[index])
    adversary.unmask(lambda index: side[index])


def test_a_low_threshold_would_give_away_both_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weakened build shares with t = k // 2, so 2t does not exceed k + c."""
    monkeypatch.setattr(parameters, "threshold_on", lambda graph, rules: graph.neighbour_count // 2)
    adversary = Adversary(task())
    alive_here_and_dead_there(adversary)
    stolen = read_from_both_secrets(adversary, victim=0, threshold=2)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(adversary.task, adversary.devices[0]).tolist()


def test_two_sides_cannot_both_reach_the_threshold() -> None:
    adversary = Adversary(task())
    alive_here_and_dead_there(adversary)
    reasons = {failed_reason(device) for device in adversary.devices}
    assert reasons == {"confirmations-too-few"}
    assert not adversary.shares
    assert 2 * parameters.threshold(CLIENTS - 1, 0) > CLIENTS - 1


# -- different survivor sets to different devices ------------------------------------------------

# Each device is told that two of 2, 3, 4, 5 dropped: every one of those four is dropped for three
# others (t), while 0 and 1 are alive for everyone. So masks of a sum of two come off.
_DROPPED_FOR = {0: (2, 3), 1: (4, 5), 2: (3, 4), 3: (4, 5), 4: (5, 2), 5: (2, 3)}


def survivors_for(index: int) -> tuple[int, ...]:
    return tuple(i for i in range(CLIENTS) if i not in _DROPPED_FOR[index])


def open_sum_of_two(adversary: Adversary, threshold: int) -> np.ndarray | None:
    """y_0 + y_1 without their masks, if the shares suffice."""
    seeds = []
    for owner in (0, 1):
        self_seed = adversary.self_seed(owner, threshold)
        if self_seed is None:
            return None
        seeds.append((self_seed, 1))
    for owner in (2, 3, 4, 5):
        mask_secret = adversary.mask_secret(owner, threshold)
        if mask_secret is None:
            return None
        for survivor in (0, 1):
            sign = 1 if survivor < owner else -1
            seeds.append((adversary.pair_seed_from(owner, mask_secret, survivor), sign))
    total = adversary.masked[0].copy()
    ring.add_into(total, adversary.masked[1], adversary.task.manifest.encoding.ring_bits)
    return adversary.strip(total, seeds)


def show_different_sets(adversary: Adversary) -> None:
    adversary.until_masked()
    adversary.confirm(survivors_for)
    adversary.unmask(lambda index: survivors_for(index))


def test_without_confirmation_a_sum_of_two_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everyone is told of at least four survivors, the manifest's minimum."""
    monkeypatch.setattr(checks, "check_confirmations", lambda *_: None)
    adversary = Adversary(task(survivors_min=4))
    show_different_sets(adversary)
    stolen = open_sum_of_two(adversary, threshold=3)
    assert stolen is not None
    both = sum(plain_vector(adversary.task, adversary.devices[i]) for i in (0, 1))
    assert stolen.tolist() == both.tolist()


def test_confirmations_of_another_set_end_the_exchange() -> None:
    adversary = Adversary(task(survivors_min=4))
    show_different_sets(adversary)
    assert {failed_reason(device) for device in adversary.devices} == {"confirmations-differ"}
    assert not adversary.shares


def test_repeating_one_confirmation_does_not_make_it_count_twice() -> None:
    adversary = Adversary(task(survivors_min=4))
    adversary.until_masked()
    adversary.confirm(lambda index: adversary.everyone, only=[0, 1, 2])
    adversary.unmask(lambda index: (1, 2, 2, 1, 2), only=[0])
    assert failed_reason(adversary.devices[0]) == "confirmations-too-few"


def test_ones_own_confirmation_does_not_count() -> None:
    adversary = Adversary(task(survivors_min=4))
    adversary.until_masked()
    adversary.confirm(lambda index: adversary.everyone, only=[0, 1, 2])
    adversary.unmask(lambda index: (0, 1, 2), only=[0])
    assert failed_reason(adversary.devices[0]) == "confirmations-too-few"


def test_the_aggregator_cannot_confirm_for_a_device() -> None:
    adversary = Adversary(task(survivors_min=4))
    adversary.until_masked()
    adversary.confirm(lambda index: adversary.everyone, only=[0])
    digests = adversary.confirmation_digests(adversary.everyone)
    task_key = signing_key(adversary.task.server.task_key)
    for index in (1, 2, 3):
        forged = messages.Confirmation(adversary.ctx, index, *digests)
        adversary.confirmations[index] = messages.sign(forged, adversary.ctx, task_key)
    adversary.unmask(lambda index: (1, 2, 3), only=[0])
    assert failed_reason(adversary.devices[0]) == "confirmation-signer"


# -- a cohort smaller than the device's own minimum ----------------------------------------------


def shrink_to_four(adversary: Adversary) -> np.ndarray | None:
    """A consistent survivor set that satisfies the manifest, not the devices."""
    adversary.until_masked()
    few = (0, 1, 2, 3)
    adversary.confirm(lambda index: few, only=few)
    adversary.unmask(lambda index: few, only=few)
    return adversary.open_sum(few, dropped=(4, 5), threshold=3)


def test_without_the_devices_own_minimum_a_small_sum_opens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "check_survivor_set", lambda *_: None)
    adversary = Adversary(task(own_minimum=5))
    opened = shrink_to_four(adversary)
    assert opened is not None
    expected = sum(plain_vector(adversary.task, adversary.devices[i]) for i in range(4))
    assert opened.tolist() == expected.tolist()


def test_a_sum_below_the_devices_own_minimum_is_refused() -> None:
    adversary = Adversary(task(own_minimum=5))
    assert shrink_to_four(adversary) is None
    for device in adversary.devices[:4]:
        assert failed_reason(device) == "survivor-set-too-small"
    assert not adversary.shares


def test_a_roster_below_the_devices_own_minimum_is_refused() -> None:
    adversary = Adversary(task(own_minimum=7))
    adversary.share()
    assert {failed_reason(device) for device in adversary.devices} == {"cohort-size"}
    assert not adversary.deals


# -- a second unmask after a restart -------------------------------------------------------------


def unmask_twice(adversary: Adversary, journal: str) -> np.ndarray | None:
    """All devices restart after they answered and are shown another survivor set.

    ``journal``: the phase whose snapshot a device restarts from.
    """
    adversary.until_masked()
    snapshots = {}
    if journal == "before":
        snapshots = {d.number: client.snapshot(d.state) for d in adversary.devices}
    adversary.confirm(lambda index: adversary.everyone)
    adversary.unmask(lambda index: adversary.everyone)
    if journal == "after":
        snapshots = {d.number: client.snapshot(d.state) for d in adversary.devices}
    for device in adversary.devices:
        device.state = client.restore(snapshots[device.number])
    without = (1, 2, 3, 4)
    adversary.confirmations.clear()
    adversary.confirm(lambda index: without, only=without)
    adversary.unmask(lambda index: without, only=without)
    return read_from_both_secrets(adversary, victim=0, threshold=3)


def test_a_device_that_journals_too_late_answers_twice() -> None:
    """The weakened build sends first and journals afterwards: the restart goes back in time."""
    adversary = Adversary(task())
    stolen = unmask_twice(adversary, journal="before")
    assert stolen is not None
    assert stolen.tolist() == plain_vector(adversary.task, adversary.devices[0]).tolist()


def test_a_device_that_journals_first_never_answers_twice() -> None:
    adversary = Adversary(task())
    assert unmask_twice(adversary, journal="after") is None
    for device in adversary.devices[1:5]:
        assert isinstance(device.state, client.Unmasked)
        assert set(device.refused) == {"message-changed"}


@pytest.mark.parametrize("phase", ["confirmed", "unmasked"])
def test_a_second_survivor_set_is_never_confirmed(phase: str) -> None:
    adversary = Adversary(task())
    adversary.until_masked()
    adversary.confirm(lambda index: adversary.everyone)
    if phase == "unmasked":
        adversary.unmask(lambda index: adversary.everyone)
    before = dict(adversary.confirmations)
    adversary.confirm(lambda index: (0, 1, 2, 3), only=[0])
    assert adversary.confirmations == before
    assert adversary.devices[0].refused == ["message-changed"]
