"""Different models to different devices, messages of other cohorts, and devices declared dead."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import client, messages
from secagg.client import checks
from secagg.keys import signing_key
from secagg.simulation import Device, SimulatedTask, make_devices, make_task, seeded_tools
from tests.kits.adversary import Adversary, failed_reason

CLIENTS = 6  # k = 5, no corrupt device: t = 3


def task(**settings: int) -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=3, **settings)


# -- different models ----------------------------------------------------------------------------


def crafted_model(adversary: Adversary, victim: int) -> np.ndarray | None:
    """One device trained on a crafted model; on theirs, the others' updates are zero."""
    adversary.share()
    if victim not in adversary.deals:
        return None
    adversary.check()
    adversary.mask()
    adversary.confirm(lambda index: adversary.everyone)
    adversary.unmask(lambda index: adversary.everyone)
    seeds = []
    for owner in adversary.everyone:
        self_seed = adversary.self_seed(owner, 3)
        assert self_seed is not None
        seeds.append((self_seed, 1))
    total = sum(adversary.masked[index].astype(np.uint64) for index in adversary.everyone)
    return adversary.strip(total.astype("<u4"), seeds)


def two_models() -> tuple[Adversary, int]:
    shown = task()
    crafted = b"x" * 32
    zero = [np.zeros(4, np.int64)] * CLIENTS
    devices = make_devices(shown, [np.full(4, 77), *zero[1:]])
    victim_config = shown.devices[0]
    devices[0] = Device(
        victim_config,
        0,
        model_digest=crafted,
        model_version=2,
        vector=devices[0]._vector,
        tools=seeded_tools(5),
    )
    adversary = Adversary(shown, devices=devices)
    adversary.models = (*adversary.models, messages.AdmittedModel(2, crafted))
    return adversary, next(i for i, d in enumerate(adversary.devices) if d.number == 0)


def test_two_models_in_one_sum_would_show_one_devices_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "check_models", lambda *_: 0)
    monkeypatch.setattr(checks, "_check_behind_each_model", lambda *_: None)
    adversary, victim = two_models()
    opened = crafted_model(adversary, victim)
    assert opened is not None
    assert opened.tolist() == [77] * 4


def test_a_second_model_is_refused_by_everyone() -> None:
    adversary, victim = two_models()
    assert crafted_model(adversary, victim) is None
    assert {failed_reason(device) for device in adversary.devices} == {"roster-models"}


def test_a_neighbour_on_another_model_is_refused() -> None:
    """Even if the roster claims that there is one model."""
    adversary, victim = two_models()
    adversary.models = adversary.models[:1]
    adversary.share()
    others = [d for i, d in enumerate(adversary.devices) if i != victim]
    assert {failed_reason(device) for device in others} == {"roster-models"}


# -- messages of another cohort ------------------------------------------------------------------


def replay_into_second_cohort() -> tuple[Device, Adversary]:
    """Somebody without the task key replays the masking set of an earlier, smaller cohort."""
    first = Adversary(task(), cohort=b"1" * 32)
    first.share(only=[0, 1, 2, 3])
    first.check(only=[0, 1, 2, 3])
    recorded = messages.sign(
        messages.MaskingSet(first.ctx, (0, 1, 2, 3)),
        first.ctx,
        signing_key(first.task.server.task_key),
    )
    second = Adversary(task(), cohort=b"2" * 32)
    second.share()
    second.check()
    second.deliver(0, recorded)
    return second.devices[0], second


def test_signatures_without_context_obey_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = messages.signature_input
    monkeypatch.setattr(
        messages, "signature_input", lambda kind, ctx, frame: genuine(kind, b"", frame)
    )
    monkeypatch.setattr(checks, "check_context", lambda *_: None)
    device, adversary = replay_into_second_cohort()
    assert isinstance(device.state, client.Uploading)
    assert device.state.masking_set == (0, 1, 2, 3)
    assert 0 in adversary.masked


def test_a_message_of_another_cohort_changes_nothing() -> None:
    device, _ = replay_into_second_cohort()
    assert isinstance(device.state, client.Checked)
    assert device.refused == ["signature-invalid"]


def test_a_dead_device_does_not_help() -> None:
    """A device that is told that it dropped ends the exchange and reveals nothing."""
    for name in ("masking-set", "survivor-set"):
        adversary = Adversary(task())
        adversary.share()
        adversary.check()
        without = (1, 2, 3, 4, 5)
        if name == "survivor-set":
            adversary.mask()
            adversary.confirm(lambda index, without=without: without)
        else:
            adversary.mask(lambda index, without=without: without)
        assert failed_reason(adversary.devices[0]) == f"{name}-without-me"
