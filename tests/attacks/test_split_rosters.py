"""Different rosters to different devices, and more drop-outs declared than the manifest allows."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import messages
from secagg.client import checks, machine
from secagg.simulation import Device, SimulatedTask, make_devices, make_task
from tests.kits import adversary as adversary_module
from tests.kits.adversary import Adversary, failed_reason, plain_vector, vectors

# -- one place in the roster, two devices ----------------------------------------------------------

MEMBERS = 6  # k = 5, no corrupt device: t = 3
OTHER_SIDE = (3, 4)  # is shown another device in the last place


class Split(Adversary):
    """Shows 0, 1, 2 one device in the last place of the roster and 3, 4 another one.

    Who is corrupt, how many neighbours a device really has and whose confirmations count then
    differ between the sides, while each roster for itself looks right.
    """

    def __init__(self, task: SimulatedTask, devices: list[Device]) -> None:
        super().__init__(task, devices=devices[:MEMBERS])
        self.places = (devices[MEMBERS - 1], devices[MEMBERS])

    def face(self, index: int) -> None:
        shown = self.places[index in OTHER_SIDE]
        self.devices[MEMBERS - 1] = shown
        self.adverts[MEMBERS - 1] = shown.advert

    def run(self) -> np.ndarray | None:
        """The sum of the five that were shown different rosters, if it opens."""
        five = tuple(range(MEMBERS - 1))
        for index in five:
            self.face(index)
            self.share(only=[index])
        for index in five:
            self.face(index)
            self.check(only=[index])
        for index in five:
            self.face(index)
            self.say(index, messages.MaskingSet(self.ctx, five))
        for index in five:
            self.face(index)
            self.confirm(lambda _: five, only=[index])
        for index in five:
            self.face(index)
            self.unmask(lambda _: five, only=[index])
        seeds = [self.self_seed(owner, 3) for owner in five]
        if any(seed is None for seed in seeds) or len(self.masked) < len(five):
            return None
        total = sum(self.masked[index].astype(np.uint64) for index in five)
        return self.strip(total.astype("<u4"), [(s, 1) for s in seeds if s], five)


def split() -> Split:
    shown = make_task(MEMBERS + 1, 4, size_min=MEMBERS, survivors_min=3)
    devices = make_devices(shown, vectors(shown, MEMBERS + 1))
    return Split(shown, sorted(devices, key=lambda d: d.config.certificate.identity_key))


def test_without_the_roster_in_the_context_two_rosters_end_in_one_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (machine, adversary_module):
        monkeypatch.setattr(module, "roster_digest", lambda *_: bytes(32))
    adversary = split()
    opened = adversary.run()
    assert opened is not None
    five = adversary.devices[: MEMBERS - 1]
    assert opened.tolist() == sum(plain_vector(adversary.task, d) for d in five).tolist()


def test_devices_that_were_shown_different_rosters_do_not_sum_up() -> None:
    adversary = split()
    assert adversary.run() is None
    assert not adversary.masked
    reasons = {failed_reason(device) for device in adversary.devices[: MEMBERS - 1]}
    assert reasons == {"masking-set-dealer"}


# -- more drop-outs than allowed -------------------------------------------------------------------


def declare_two_dropped(adversary: Adversary) -> np.ndarray | None:
    """All agree on four survivors, who have every share that the opening needs."""
    adversary.until_masked()
    few = (0, 1, 2, 3)
    adversary.confirm(lambda _: few, only=few)
    adversary.unmask(lambda _: few, only=few)
    return adversary.open_sum(few, dropped=(4, 5), threshold=3)


def test_without_the_manifests_minimum_more_may_be_declared_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of six dropped where the manifest allows one. The threshold alone does not stop it."""
    monkeypatch.setattr(checks, "_check_enough", lambda *_: None)
    adversary = Adversary(make_task(MEMBERS, 4, survivors_min=5))
    opened = declare_two_dropped(adversary)
    assert opened is not None
    expected = sum(plain_vector(adversary.task, d) for d in adversary.devices[:4])
    assert opened.tolist() == expected.tolist()


def test_more_dropped_than_the_manifest_allows_ends_the_exchange() -> None:
    adversary = Adversary(make_task(MEMBERS, 4, survivors_min=5))
    assert declare_two_dropped(adversary) is None
    assert not adversary.shares
    for device in adversary.devices[:4]:
        assert failed_reason(device) == "survivor-set-too-small"


def test_a_masking_set_below_the_manifests_minimum_ends_the_exchange() -> None:
    adversary = Adversary(make_task(MEMBERS, 4, survivors_min=5))
    adversary.share()
    adversary.check()
    adversary.mask(lambda _: (0, 1, 2, 3))
    assert not adversary.masked
    for device in adversary.devices[:4]:
        assert failed_reason(device) == "masking-set-too-small"
