"""A device's state survives its journal: round trip, resume in every phase, bad bytes."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import msgspec
import pytest

from secagg import client, server
from secagg.client.snapshot import _READABLE, _STATES
from secagg.errors import LocalProtocolError
from secagg.secret import Secret
from secagg.simulation import Aggregator, Hooks, LocalDevices, drive, make_task
from tests.kits.protocol_run import make_recorded, recorded_run
from tests.kits.said import said

FROZEN = Path(__file__).with_name("snapshots-1.json")
PHASES = [state.phase for state in _STATES]


def plain(value: object) -> object:
    """The state as comparable values, secrets revealed."""
    if isinstance(value, Secret):
        return ("secret", value.reveal())
    if is_dataclass(value) and not isinstance(value, type):
        return (
            type(value).__name__,
            {field.name: plain(getattr(value, field.name)) for field in fields(value)},
        )
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, [plain(inner) for inner in value])
    return value


def states() -> dict[str, client.State]:
    failed = client.Failed("cohort-aborted", "The aggregator ended the cohort.", b"k" * 32)
    return {**recorded_run().client_states, "failed": failed}


@pytest.mark.parametrize("phase", PHASES)
def test_round_trip_of_every_phase(phase: str) -> None:
    state = states()[phase]
    restored = client.restore(client.snapshot(state))
    assert type(restored) is type(state)
    assert plain(restored) == plain(state)
    assert client.snapshot(restored) == client.snapshot(state)


def test_a_device_that_restarts_after_every_event_is_in_the_sum() -> None:
    """Each state goes through its snapshot before the next event is handled."""
    task = make_task(5, 5, slice_length=4, survivors_min=3)
    devices = make_recorded(task)
    restarting = devices[2]

    def restart(number: int, message: bytes) -> list[bytes]:
        if number == restarting.number:
            restarting.state = client.restore(client.snapshot(restarting.state))
        return [message]

    pool = LocalDevices(devices)
    aggregator = Aggregator(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks(downward=restart)
    )
    result = drive(aggregator, pool)
    assert isinstance(result.state, server.Released)
    assert result.total is not None
    assert result.total.tolist() == [1] * 5
    assert isinstance(restarting.state, client.Finished)


def test_a_restart_while_the_vector_is_encoded_asks_for_the_same_cohort_again() -> None:
    run = recorded_run()
    state = client.restore(client.snapshot(run.client_states["awaiting-vector"]))
    event = run.client_events["VectorReady"]
    again, (upload,) = client.step(run.device.config, state, event, run.tools())
    _, (expected,) = client.step(
        run.device.config, run.client_states["awaiting-vector"], event, run.tools()
    )
    assert isinstance(again, client.Uploading)
    assert isinstance(upload, client.Upload)
    assert isinstance(expected, client.Upload)
    assert (upload.header, upload.payload) == (expected.header, expected.payload)


@pytest.mark.parametrize("phase", PHASES)
def test_damaged_snapshots_are_refused_by_name(phase: str) -> None:
    good = client.snapshot(states()[phase])
    for length in range(len(good)):
        with pytest.raises(LocalProtocolError) as caught:
            client.restore(good[:length])
        assert caught.value.reason in ("snapshot-version", "snapshot-malformed")
    with pytest.raises(LocalProtocolError, match="snapshot-version"):
        client.restore(b"\x63" + good[1:])
    with pytest.raises(LocalProtocolError, match="snapshot-malformed"):
        client.restore(good[:1] + b"\xff" + good[2:])


@pytest.mark.parametrize("value", [5, "text", None, [1]])
def test_a_secret_that_is_no_bytes_is_refused(value: object) -> None:
    """Of a number, Python would make so many zero bytes."""
    data = client.snapshot(states()["advertised"])
    fields_of = msgspec.msgpack.decode(data[2:])
    assert isinstance(fields_of["mask_secret"], bytes)
    changed = data[:2] + msgspec.msgpack.encode({**fields_of, "mask_secret": value})
    with pytest.raises(LocalProtocolError, match="snapshot-malformed"):
        client.restore(changed)


def test_a_snapshot_of_another_version_says_which() -> None:
    for data, found in ((b"", None), (b"\x09\x00", 9)):
        with pytest.raises(LocalProtocolError) as caught:
            client.restore(data)
        assert said(caught.value) == ("snapshot-version", _READABLE, found)


def test_what_is_no_part_of_a_state_is_not_written() -> None:
    with pytest.raises(TypeError, match="object"):
        client.snapshot(client.Failed("reason", "Text.", object()))  # type: ignore[arg-type]


def test_the_snapshot_of_a_finished_masking_holds_no_seed() -> None:
    """What opened the vector is gone before its first byte leaves."""
    run = recorded_run()
    awaiting = run.client_states["awaiting-vector"]
    assert isinstance(awaiting, client.AwaitingVector)
    seeds = [awaiting.self_seed, *awaiting.pair_seeds.values()]
    for phase in ("uploading", "confirmed", "unmasked", "finished"):
        data = client.snapshot(run.client_states[phase])
        assert not any(seed.reveal() in data for seed in seeds)


def test_snapshots_of_version_1_still_load_and_go_on() -> None:
    """Written before there were sparse graphs, several models and noise seeds."""
    frozen = json.loads(FROZEN.read_text())["snapshots"]
    assert set(frozen) == set(PHASES)
    for phase, data in frozen.items():
        old = bytes.fromhex(data)
        assert old[0] == 1
        state = client.restore(old)
        assert state.phase == phase
        again = client.snapshot(state)
        assert again[0] == 2
        assert plain(client.restore(again)) == plain(state)
        if isinstance(state, (client.Shared, client.Checked, client.Uploading)):
            assert state.session.graph.is_complete
    cancel = client.Cancel("test", "The device gives up.")
    config, tools = recorded_run().device.config, recorded_run().tools()
    state, _ = client.step(config, client.restore(bytes.fromhex(frozen["checked"])), cancel, tools)
    assert isinstance(state, client.Failed)
