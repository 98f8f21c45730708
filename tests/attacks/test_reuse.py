"""What would be used twice if a device went back in time: one-use masks and one-use adverts.

The weakened build here is a driver that sends before it journals, so that a restart brings back a
state from before the message. A device that an attacker can roll back counts as corrupt.
"""

from __future__ import annotations

import numpy as np
import pytest

from secagg import client, ring
from secagg.errors import LocalProtocolError
from secagg.secret import Secret
from secagg.simulation import SimulatedTask, make_task
from tests.kits.adversary import Adversary, plain_vector

CLIENTS = 6  # k = 5, no corrupt device: t = 3


def task() -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=3)


def payload(shown: SimulatedTask, values: list[int]) -> np.ndarray:
    encoding = shown.manifest.encoding
    return ring.with_checks(np.array(values, np.int64), encoding.ring_bits, encoding.slice_length)


# -- two vectors under one mask ------------------------------------------------------------------


def until_asked_for_a_vector(adversary: Adversary, index: int) -> tuple[bytes, client.State]:
    """(snapshot from before the vector was masked, state after)."""
    adversary.share()
    adversary.check()
    device = adversary.devices[index]
    kept: list[bytes] = []
    genuine = device._vector

    def vector() -> ring.Lanes:
        kept.append(client.snapshot(device.state))
        return genuine()

    device._vector = vector
    adversary.mask()
    return kept[0], device.state


def test_a_device_that_journals_too_late_masks_two_vectors_alike() -> None:
    adversary = Adversary(task())
    snapshot, _ = until_asked_for_a_vector(adversary, 0)
    device = adversary.devices[0]
    other = payload(adversary.task, [5, 6, 7, 8])
    state, (upload,) = client.step(
        device.config, client.restore(snapshot), client.VectorReady(other), device.tools
    )
    assert isinstance(state, client.Uploading)
    assert isinstance(upload, client.Upload)
    second = ring.unpack(upload.payload, 5, 32)
    difference = ring.centred(second - adversary.masked[0], 32)[1:]
    expected = np.array([5, 6, 7, 8]) - plain_vector(adversary.task, device)
    assert difference.tolist() == expected.tolist()


def test_a_device_that_journals_first_masks_one_vector() -> None:
    adversary = Adversary(task())
    _, after = until_asked_for_a_vector(adversary, 0)
    device = adversary.devices[0]
    restored = client.restore(client.snapshot(after))
    other = payload(adversary.task, [5, 6, 7, 8])
    with pytest.raises(LocalProtocolError, match="vector-not-due"):
        client.step(device.config, restored, client.VectorReady(other), device.tools)


# -- an advert in two rosters ----------------------------------------------------------------------


def use_advert_again(victim: int, *, journal_first: bool) -> tuple[Adversary, Secret]:
    """The victim drops from a first cohort, so its mask secret is opened; then its advert is put
    into a second one. Returns the second cohort and that secret."""
    shown = task()
    first = Adversary(shown, cohort=b"1" * 32)
    before = client.snapshot(first.devices[victim].state)
    first.share()
    first.check()
    first.mask()
    alive = tuple(index for index in first.everyone if index != victim)
    first.confirm(lambda index: alive, only=alive)
    first.unmask(lambda index: alive, only=alive)
    mask_secret = first.mask_secret(victim, 3)
    assert mask_secret is not None
    fresh = Adversary(shown, cohort=b"2" * 32)
    again = first.devices[victim]
    if not journal_first:
        again.state = client.restore(before)
    devices = [again if d.number == again.number else d for d in fresh.devices]
    return Adversary(shown, devices=devices, cohort=b"2" * 32), mask_secret


def read_second_cohort(adversary: Adversary, victim: int, secret: Secret) -> np.ndarray | None:
    adversary.share()
    if victim not in adversary.deals:
        return None
    adversary.check()
    adversary.mask()
    adversary.confirm(lambda index: adversary.everyone)
    adversary.unmask(lambda index: adversary.everyone)
    self_seed = adversary.self_seed(victim, 3)
    assert self_seed is not None
    others = [other for other in adversary.everyone if other != victim]
    seeds = {other: adversary.pair_seed_from(victim, secret, other) for other in others}
    return adversary.read_vector(victim, self_seed, seeds)


def test_an_advert_in_a_second_roster_would_be_masked_with_an_opened_secret() -> None:
    adversary, secret = use_advert_again(2, journal_first=False)
    stolen = read_second_cohort(adversary, 2, secret)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(adversary.task, adversary.devices[2]).tolist()


def test_a_device_that_journals_its_first_roster_accepts_no_second() -> None:
    adversary, secret = use_advert_again(2, journal_first=True)
    assert read_second_cohort(adversary, 2, secret) is None
    assert 2 not in adversary.deals
    state = adversary.devices[2].state
    assert isinstance(state, client.Uploading)
    assert state.session.cohort == b"1" * 32
