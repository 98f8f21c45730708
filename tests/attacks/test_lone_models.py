"""A buffer's models are counted in the roster; the aggregator then calls devices lost, one by one.

Eight devices, three of them behind a model B that is worth attacking: on the other model, A, every
update vanishes. With two of the three called lost, the sum is the third one's vector.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secagg import client, messages, ring
from secagg.client import checks
from secagg.simulation import Device, make_task, seeded_tools
from tests.kits.adversary import Adversary, failed_reason

CLIENTS, LENGTH, THRESHOLD = 8, 4, 4
A, B = messages.AdmittedModel(5, b"A" * 32), messages.AdmittedModel(6, b"B" * 32)
LONE = np.array([11, 22, 33, 44])


def buffer(*, own_minimum: int = 2) -> Adversary:
    """Devices 0, 1 and 2 trained on B, the others on A; none is corrupt."""
    task = make_task(
        CLIENTS,
        LENGTH,
        slice_length=LENGTH,
        survivors_min=5,
        versions_back=2,
        model_min=3,
        own_minimum=own_minimum,
    )
    devices = []
    for number, config in enumerate(task.devices):
        model = B if number < 3 else A
        vector = LONE * (number + 1) if number < 3 else np.zeros(LENGTH, np.int64)
        devices.append(
            Device(
                config,
                number,
                model_digest=model.digest,
                model_version=model.version,
                vector=lambda v=vector: ring.with_checks(v.astype(np.int64), 32, LENGTH),
                tools=seeded_tools(number),
            )
        )
    adversary = Adversary(task, devices=devices)
    adversary.models = (A, B)
    return adversary


def called_lost(adversary: Adversary, *numbers: int) -> tuple[int, ...]:
    return tuple(i for i, device in enumerate(adversary.devices) if device.number in numbers)


def opened_after_masking(adversary: Adversary, lost: tuple[int, ...]) -> np.ndarray | None:
    """The sum without devices that are called lost once their vectors are in."""
    rest = tuple(i for i in adversary.everyone if i not in lost)
    adversary.until_masked()
    adversary.confirm(lambda _: rest, only=rest)
    adversary.unmask(lambda _: rest, only=rest)
    return adversary.open_sum(rest, lost, THRESHOLD)


def opened_before_masking(adversary: Adversary, lost: tuple[int, ...]) -> np.ndarray | None:
    """The sum without devices that are called lost before anybody masks."""
    rest = tuple(i for i in adversary.everyone if i not in lost)
    adversary.share()
    adversary.check()
    for index in rest:
        adversary.say(index, messages.MaskingSet(adversary.ctx, rest))
    if not all(index in adversary.masked for index in rest):
        return None
    adversary.confirm(lambda _: rest, only=rest)
    adversary.unmask(lambda _: rest, only=rest)
    seeds = [(adversary.self_seed(owner, THRESHOLD), 1) for owner in rest]
    total = sum(adversary.masked[index].astype(np.uint64) for index in rest)
    return adversary.strip(total.astype("<u4"), seeds, members=rest)


OPENED = {"survivor-set": opened_after_masking, "masking-set": opened_before_masking}


@pytest.mark.parametrize("which", OPENED)
def test_counted_in_the_roster_alone_a_model_has_one_device_behind_it(
    monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setattr(checks, "_check_behind_each_model", lambda *_: None)
    adversary = buffer()
    opened = OPENED[which](adversary, called_lost(adversary, 1, 2))
    assert opened is not None
    assert opened.tolist() == LONE.tolist()


@pytest.mark.parametrize("lost", [(1, 2), (2,), (1, 2, 3), (3, 4, 5)])
@pytest.mark.parametrize("which", OPENED)
def test_a_model_with_too_few_devices_in_a_set_ends_the_exchange(
    which: str, lost: tuple[int, ...]
) -> None:
    """Whichever model it is that devices are taken from."""
    adversary = buffer()
    assert OPENED[which](adversary, called_lost(adversary, *lost)) is None
    reasons = {failed_reason(d) for d in adversary.devices if d.number not in lost}
    assert reasons == {f"{which}-models"}


def test_a_model_that_nobody_in_the_set_trained_on_is_none_of_the_sum() -> None:
    adversary = buffer()
    opened = opened_after_masking(adversary, called_lost(adversary, 0, 1, 2))
    assert opened is not None
    assert opened.tolist() == [0] * LENGTH


def test_the_devices_own_minimum_counts_behind_each_model_of_each_set() -> None:
    """The manifest asks for three behind each model, device 4 for four."""
    adversary = buffer()
    asking = called_lost(adversary, 4)[0]
    adversary.share()
    adversary.check()
    device = adversary.devices[asking]
    device.config = replace(device.config, survivors_min=4)
    adversary.say(asking, messages.MaskingSet(adversary.ctx, adversary.everyone))
    assert failed_reason(device) == "masking-set-models"


def test_a_session_journalled_before_places_were_kept_refuses_a_second_model() -> None:
    adversary = buffer()
    adversary.share()
    adversary.check()
    state = adversary.devices[0].state
    assert isinstance(state, client.Checked)
    device = adversary.devices[0]
    device.state = replace(state, session=replace(state.session, model_places=()))
    adversary.say(0, messages.MaskingSet(adversary.ctx, adversary.everyone))
    assert failed_reason(device) == "masking-set-models"
