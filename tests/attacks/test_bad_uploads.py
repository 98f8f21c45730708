"""Oversized vectors and vectors of another ring, announced honestly and masked well."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import pytest

from secagg import client, messages, ring, server
from secagg.errors import RemoteProtocolError
from secagg.keys import signing_key
from secagg.simulation import Device, Output, SimulatedTask, make_devices, run_cohort
from secagg.simulation import cohort as cohort_driver
from tests.kits.corrupt import CLIENTS, LIAR, assert_released_without, one_hot, task


def changing(shown: SimulatedTask, change) -> list[Device]:
    """The corrupt device announces and sends ``change(payload)``; header and bytes agree."""
    devices = make_devices(shown, one_hot())
    key = signing_key(devices[LIAR].config.identity)

    class Other(Device):
        def _drive(self, event: client.Event) -> list[Output]:
            return [self._rewrite(output) for output in super()._drive(event)]

        def _rewrite(self, output: Output) -> Output:
            if output.payload is None or getattr(self, "done", False):
                return output
            self.done = True
            header, _ = messages.peek(output.message, messages.MaskedInput)
            sent = change(output.payload)
            changed = msgspec.structs.replace(
                header, size_bytes=len(sent), vector_digest=hashlib.sha256(sent).digest()
            )
            return Output(self.number, messages.sign(changed, header.ctx, key), sent)

    devices[LIAR].__class__ = Other
    return devices


def other_ring(payload: bytes) -> bytes:
    """The same lanes, packed for a ring of 33 bits."""
    return ring.pack(ring.unpack(payload, 8, 32).astype("<u8"), 33)


WRONG = {
    "one-coordinate-long": lambda payload: payload + bytes(4),
    "one-byte-long": lambda payload: payload + b"\x00",
    "a-gibibyte-announced": lambda payload: payload * 1000,
    "other-modulus": other_ring,
    "empty": lambda payload: b"",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_vector_of_another_size_or_ring_costs_only_its_sender(name: str) -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), devices=changing(shown, WRONG[name]))
    assert (LIAR, "masked-input") in result.refused
    assert_released_without(result, LIAR)


@pytest.mark.parametrize("name", WRONG)
def test_without_the_announced_size_they_reach_the_sum_and_stop_the_cohort(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weakened aggregator takes whatever size a device announces: one device, no release."""
    shown = task()
    monkeypatch.setattr(server.collect, "take_masked_input", _any_size)
    with pytest.raises(RemoteProtocolError, match="vector-size"):
        run_cohort(shown, one_hot(), devices=changing(shown, WRONG[name]))


def _any_size(config, state, index, header):
    announced = replace(state, announced=state.announced | {index})
    return announced, server.AcceptUpload(index, header.vector_digest, header.size_bytes)


def reduced_in_another_ring(payload: bytes) -> bytes:
    """Right size, wrong modulus: the masked lanes were reduced modulo 2^16 before packing.

    Reduced by 2^31, half of the coordinates stay as they are, the check coordinates perhaps among
    them: then it is one more wrong vector, which nothing can tell from a right one.
    """
    lanes = ring.unpack(payload, 8, 32) & 0xFFFF
    return ring.pack(lanes, 32)


def test_a_vector_reduced_by_another_modulus_is_seen_and_nothing_is_released() -> None:
    shown = task()
    result = run_cohort(shown, one_hot(), devices=changing(shown, reduced_in_another_ring))
    assert isinstance(result.state, server.Aborted)
    assert result.ended.reason == "check-coordinates"
    assert result.total is None


def test_without_check_coordinates_the_wrong_modulus_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cohort_driver, "check_sum", lambda *_: None)
    shown = task()
    result = run_cohort(shown, one_hot(), devices=changing(shown, reduced_in_another_ring))
    assert result.total is not None
    assert result.total.tolist() != [1] * CLIENTS
