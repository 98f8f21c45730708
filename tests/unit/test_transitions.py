"""Every (phase, event) cell of both tables, fed with real messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from protocol_run import recorded_run

from secagg import client, messages, server, transitions
from secagg.client import machine as client_machine
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.server import machine as server_machine

CLIENT_PHASES = [
    "advertised",
    "shared",
    "checked",
    "awaiting-vector",
    "uploading",
    "confirmed",
    "unmasked",
]
CLIENT_EVENTS = [
    "Roster",
    "Inbox",
    "MaskingSet",
    "VectorReady",
    "SurvivorSet",
    "Confirmations",
    "Receipt",
    "Abort",
    "Cancel",
]
SERVER_EVENTS = [
    "Deals",
    "Ready",
    "Complaint",
    "MaskedInput",
    "VectorAdded",
    "Confirmation",
    "Unmask",
    "SumOpened",
    "SumRefused",
    "ReleaseCommitted",
    "Tick",
    "Cancel",
]
# Phases in which a server message of the recorded run was obeyed before.
OBEYED_BEFORE = {
    "Roster": CLIENT_PHASES[1:],
    "Inbox": CLIENT_PHASES[2:],
    "MaskingSet": CLIENT_PHASES[3:],
    "SurvivorSet": CLIENT_PHASES[5:],
    "Confirmations": CLIENT_PHASES[6:],
}


def client_event(name: str) -> client.Event:
    run = recorded_run()
    if name == "Abort":
        abort = messages.Abort(run.aggregator.state.facts.cohort, "too-few-vectors")
        return client.Received(run.sign(abort), run.aggregator.now_s)
    if name == "Cancel":
        return client.Cancel("deadline", "The device's own deadline passed.")
    return run.client_events[name]


def server_event(name: str) -> server.Event:
    run = recorded_run()
    now_s = run.aggregator.now_s
    match name:
        case "Complaint":
            # An accusation with the deal as delivered, of a device that says nothing else.
            inbox, _ = messages.peek(run.client_events["Inbox"].message, messages.Inbox)
            evidence = inbox.deals[0]
            accused = messages.peek(evidence, messages.Deal)[0].sender
            complaint = messages.Complaint(
                run.aggregator.state.ctx, run.index, (accused,), (evidence,)
            )
            return server.Received(run.index, run.sign_as_device(complaint), now_s)
        case "SumRefused":
            return server.SumRefused("check-coordinates", now_s)
        case "Tick":
            return server.Tick(float("inf"))
        case "Cancel":
            return server.Cancel("task-paused", now_s)
    return run.server_events[name]


@pytest.mark.parametrize("event", CLIENT_EVENTS)
@pytest.mark.parametrize("phase", [*CLIENT_PHASES, "finished"])
def test_client_cell(phase: str, event: str) -> None:
    run = recorded_run()
    state = run.client_states[phase]
    config = run.device.config

    def step() -> client_machine.Outcome:
        return client.step(config, state, client_event(event), run.tools())

    if phase == "finished":
        assert step() == (state, ())
    elif (phase, event) in transitions.CLIENT:
        after, effects = step()
        assert after.phase in transitions.CLIENT[phase, event]
        assert effects
        if event not in ("Abort", "Cancel"):
            assert after.phase != "failed"
    elif phase in OBEYED_BEFORE.get(event, ()):
        after, effects = step()
        assert after is state
        assert effects == ()
    else:
        with pytest.raises((RemoteProtocolError, LocalProtocolError)) as caught:
            step()
        assert caught.value.reason in (
            "message-not-due",
            "vector-not-due",
            "frame-kind",
            "signature-invalid",
        )


@pytest.mark.parametrize("event", SERVER_EVENTS)
@pytest.mark.parametrize("phase", [*transitions.SERVER_ORDER, "released"])
def test_server_cell(phase: str, event: str) -> None:
    run = recorded_run()
    # Without memory of what was taken before, so that the cell itself is met.
    state = replace(run.server_states[phase], accepted={})

    def step() -> tuple[server.State, tuple[server.Effect, ...]]:
        return server.step(run.task.server, state, server_event(event))

    if phase == "released" or (
        phase in transitions.SERVER_ORDER
        and transitions.server_is_late(phase, event)
        and event in server_machine._HANDLERS
        and hasattr(messages, event)
    ):
        after, effects = step()
        assert after is state
        assert effects == ()
    elif (phase, event) not in transitions.SERVER:
        with pytest.raises(SecaggError) as caught:
            step()
        assert caught.value.reason in ("message-not-due", "event-not-due")
    elif event == "VectorAdded":
        announced, _ = server.step(run.task.server, state, server_event("MaskedInput"))
        after, _ = server.step(run.task.server, announced, server_event(event))
        assert after.phase in transitions.SERVER[phase, event]
    else:
        after, _ = step()
        assert after.phase in transitions.SERVER[phase, event]


def test_every_row_has_a_handler_and_every_handler_a_row() -> None:
    handled = {event for _, event in transitions.SERVER}
    assert handled == set(server_machine._HANDLERS)
    assert handled == set(SERVER_EVENTS)
    rows = {
        (phase, event)
        for phase, event in transitions.CLIENT
        if event not in ("VectorReady", "Cancel", "Roster")
    }
    assert rows == {(phase, kind.__name__) for phase, kind in client_machine._HANDLERS}
    assert {event for _, event in transitions.CLIENT} == set(CLIENT_EVENTS)


def test_every_phase_is_reachable_and_every_target_is_a_phase() -> None:
    for table, start, terminal in (
        (transitions.CLIENT, "advertised", transitions.CLIENT_TERMINAL),
        (transitions.SERVER, "sharing", transitions.SERVER_TERMINAL),
    ):
        phases = {phase for phase, _ in table} | terminal
        targets = {target for row in table.values() for target in row}
        assert targets | {start} == phases
        assert all(phase not in terminal for phase, _ in table)
