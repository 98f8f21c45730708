"""Vectors of a wrong size, other than announced, or with masks that nobody else has."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import msgspec
import pytest

from secagg import client, messages, server
from secagg.errors import RemoteProtocolError
from secagg.keys import signing_key
from secagg.secret import Secret
from secagg.server import collect
from secagg.simulation import (
    CohortResult,
    Device,
    Hooks,
    Output,
    SimulatedTask,
    make_devices,
    run_cohort,
)
from secagg.simulation import cohort as cohort_driver
from tests.kits.corrupt import CLIENTS, LIAR, assert_released_without, one_hot, task


def one_coordinate_short(shown: SimulatedTask) -> list[Device]:
    """The corrupt device's header and payload agree with each other, and are too short."""
    devices = make_devices(shown, one_hot())
    key = signing_key(devices[LIAR].config.identity)

    class Short(Device):
        def _drive(self, event: client.Event) -> list[Output]:
            outputs = super()._drive(event)
            return [self._shorten(output) if output.payload else output for output in outputs]

        def _shorten(self, output: Output) -> Output:
            header, _ = messages.peek(output.message, messages.MaskedInput)
            short = (output.payload or b"")[:-4]
            changed = msgspec.structs.replace(
                header, size_bytes=len(short), vector_digest=hashlib.sha256(short).digest()
            )
            return Output(self.number, messages.sign(changed, header.ctx, key), short)

    devices[LIAR].__class__ = Short
    return devices


def test_a_vector_of_another_size_costs_only_its_sender() -> None:
    shown = task()
    devices = one_coordinate_short(shown)
    result = run_cohort(shown, one_hot(), devices=devices)
    assert (LIAR, "masked-input") in result.refused
    assert_released_without(result, LIAR)


def test_without_the_size_check_only_decoding_is_left_to_stop_a_short_vector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened aggregator accepts whatever size a device announces, bytes and all."""

    def take(
        config: server.ServerConfig, state: server.Masking, index: int, header: messages.MaskedInput
    ) -> tuple[server.Masking, server.AcceptUpload]:
        announced = replace(state, announced=state.announced | {index})
        return announced, server.AcceptUpload(index, header.vector_digest, header.size_bytes)

    monkeypatch.setattr(collect, "take_masked_input", take)
    shown = task()
    devices = one_coordinate_short(shown)
    with pytest.raises(RemoteProtocolError, match="vector-size"):
        run_cohort(shown, one_hot(), devices=devices)


def test_bytes_that_are_not_the_announced_vector_are_never_added() -> None:
    shown = task()
    hooks = Hooks(vector=lambda number, payload: bytes(len(payload)) if number == LIAR else payload)
    result = run_cohort(shown, one_hot(), hooks=hooks)
    assert (LIAR, "vector-digest") in result.refused
    assert_released_without(result, LIAR)


def masking_with_another_seed(
    monkeypatch: pytest.MonkeyPatch, shown: SimulatedTask
) -> CohortResult:
    """The corrupt device masks with a seed that it dealt to nobody."""
    devices = make_devices(shown, one_hot())
    liar = devices[LIAR]
    genuine = client.machine._mask

    def mask(config, state, event):
        if config is not liar.config:
            return genuine(config, state, event)
        other = {index: Secret(b"w" * 32) for index in state.pair_seeds}
        return genuine(config, replace(state, pair_seeds=other), event)

    monkeypatch.setattr(client.machine, "_mask", mask)
    return run_cohort(shown, one_hot(), devices=devices)


def test_masks_that_do_not_cancel_are_seen_and_nothing_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = masking_with_another_seed(monkeypatch, task())
    assert isinstance(result.state, server.Aborted)
    assert result.ended.reason == "check-coordinates"
    assert result.total is None


def test_without_check_coordinates_a_wrong_sum_is_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cohort_driver, "check_sum", lambda *_: None)
    result = masking_with_another_seed(monkeypatch, task())
    assert isinstance(result.state, server.Released)
    assert result.total is not None
    assert result.total.tolist() != [1] * CLIENTS
