"""Sets that look large enough because somebody is counted more than once."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import ring
from secagg.client import checks
from secagg.simulation import Device, make_task, seeded_tools
from tests.kits.adversary import Adversary, failed_reason, plain_vector, vectors

CLIENTS = 6  # k = 5, no corrupt device: t = 3


# -- one device in every other place of the roster -------------------------------------------------


def one_device_five_times() -> tuple[Adversary, Device]:
    """One real device, and one device of the aggregator's with five adverts of its own."""
    shown = make_task(CLIENTS, 4, survivors_min=CLIENTS)
    encoding = shown.manifest.encoding

    def device(place: int) -> Device:
        number = min(place, 1)
        data = vectors(shown, CLIENTS)[0] if number == 0 else np.zeros(4, np.int64)
        payload = ring.with_checks(data, encoding.ring_bits, encoding.slice_length)
        return Device(
            shown.devices[number],
            number,
            model_digest=shown.model_digest,
            vector=lambda: payload,
            tools=seeded_tools(3, place),
        )

    devices = [device(place) for place in range(CLIENTS)]
    return Adversary(shown, devices=devices), devices[0]


def read_the_only_other(adversary: Adversary) -> np.ndarray | None:
    adversary.until_masked()
    adversary.confirm(lambda _: adversary.everyone)
    adversary.unmask(lambda _: adversary.everyone)
    seeds = [adversary.self_seed(owner, 3) for owner in adversary.everyone]
    if any(seed is None for seed in seeds) or len(adversary.masked) < CLIENTS:
        return None
    total = sum(lanes.astype(np.uint64) for lanes in adversary.masked.values())
    return adversary.strip(total.astype("<u4"), [(seed, 1) for seed in seeds if seed])


def test_without_strict_order_one_device_is_a_whole_cohort(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Six places, the manifest's minimum; five of them are one device, whose inputs are known."""
    monkeypatch.setattr(checks, "check_order", lambda *_: None)
    adversary, victim = one_device_five_times()
    stolen = read_the_only_other(adversary)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(adversary.task, victim).tolist()


def test_a_device_is_in_the_roster_once() -> None:
    adversary, victim = one_device_five_times()
    assert read_the_only_other(adversary) is None
    assert failed_reason(victim) == "roster-order"
    assert not adversary.masked


# -- one survivor twice ----------------------------------------------------------------------------

PADDED = (0, 1, 2, 3, 3)  # four devices; the minimum is five


def open_four(adversary: Adversary) -> np.ndarray | None:
    adversary.until_masked()
    few = sorted(set(PADDED))
    adversary.confirm(lambda _: PADDED, only=few)
    adversary.unmask(lambda _: few, only=few)
    return adversary.open_sum(few, dropped=(4, 5), threshold=3)


def test_without_strict_indices_a_survivor_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_check_indices", lambda *_: None)
    adversary = Adversary(make_task(CLIENTS, 4, survivors_min=5))
    opened = open_four(adversary)
    assert opened is not None
    expected = sum(plain_vector(adversary.task, d) for d in adversary.devices[:4])
    assert opened.tolist() == expected.tolist()


def test_a_survivor_counts_once() -> None:
    adversary = Adversary(make_task(CLIENTS, 4, survivors_min=5))
    assert open_four(adversary) is None
    assert not adversary.shares
    for device in adversary.devices[:4]:
        assert failed_reason(device) == "survivor-set-malformed"
