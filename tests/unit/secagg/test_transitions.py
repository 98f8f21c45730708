"""Every (phase, event) cell of both tables, on the real states of a recorded run.

A cell of the table steps to one of its targets. Any other cell is refused by the one reason that is
due there, or passed over in silence, and leaves every byte of the state as it was.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import msgspec
import pytest

from docs.states import Cells, cells
from secagg import client, messages, server
from secagg.client import machine as client_machine
from secagg.client import transitions as of_device
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.secret import Secret
from secagg.server import machine as server_machine
from secagg.server import transitions as of_cohort
from tests.kits.protocol_run import Run, recorded_run

CLIENT, SERVER = cells(of_device.TABLE), cells(of_cohort.TABLE)
CLIENT_PHASES, SERVER_PHASES = (
    [*dict.fromkeys(phase for phase, _ in table)] for table in (CLIENT, SERVER)
)
CLIENT_EVENTS, SERVER_EVENTS = (sorted({event for _, event in table}) for table in (CLIENT, SERVER))
CLIENT_TERMINAL, SERVER_TERMINAL = (
    sorted(state.phase for state in terminal)
    for terminal in (of_device.TERMINAL, of_cohort.TERMINAL)
)
# The phase that a message of the recorded run led to: from there on it was obeyed before.
LED_TO = {
    "Roster": "shared",
    "Inbox": "checked",
    "MaskingSet": "awaiting-vector",
    "SurvivorSet": "confirmed",
    "Confirmations": "unmasked",
}


def laid_open(value: Any) -> Any:
    """Everything in a state, secrets too, as something that compares."""
    if isinstance(value, Secret):
        return "secret", value.reveal()
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), [laid_open(getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return [(key, laid_open(inner)) for key, inner in value.items()]
    if isinstance(value, (tuple, list)):
        return [laid_open(inner) for inner in value]
    return value


def client_event(run: Run, name: str) -> client.Event:
    if name == "Abort":
        abort = messages.Abort(run.aggregator.state.facts.cohort, "too-few-vectors")
        return client.Received(run.sign(abort), run.aggregator.now_s)
    if name == "Cancel":
        return client.Cancel("deadline", "The device's own deadline passed.")
    return run.client_events[name]


def client_state(run: Run, phase: str) -> client.State:
    if phase == "failed":
        return client.Failed("deadline", "The device's own deadline passed.", None)
    return run.client_states[phase]


def server_event(run: Run, name: str) -> server.Event:
    now_s = run.aggregator.now_s
    match name:
        case "Complaint":
            # An accusation with the deal as delivered, of a device that says nothing else.
            inbox, _ = messages.peek(run.client_events["Inbox"].message, messages.Inbox)
            evidence = inbox.deals[0]
            accused = messages.peek(evidence, messages.Deal)[0].sender
            complaint = messages.Complaint(
                run.aggregator.state.ctx, run.index, (accused,), (evidence,), b"n" * 32
            )
            return server.Received(run.index, run.sign_as_device(complaint), now_s)
        case "Refusal":
            refusal = messages.Refusal(run.aggregator.state.ctx, run.index, "partner-unknown", -1)
            return server.Received(run.index, run.sign_as_device(refusal), now_s)
        case "SumRefused":
            return server.SumRefused("check-coordinates", now_s)
        case "Tick":
            return server.Tick(float("inf"))
        case "Cancel":
            return server.Cancel("task-paused", now_s)
        case "Exclude":
            return server.Exclude(run.index)
    return run.server_events[name]


def server_state(run: Run, phase: str, event: str) -> server.State:
    """Without memory of messages taken before, so that the cell itself is met."""
    if phase == "aborted":
        cancel = server_event(run, "Cancel")
        return server.step(run.task.server, run.server_states["masking"], cancel)[0]
    state = replace(run.server_states[phase], accepted={})
    if (phase, event) == ("masking", "VectorAdded"):  # a vector is announced before it comes
        announced = server_event(run, "MaskedInput")
        state, _ = server.step(run.task.server, state, announced)
    return state


# -- the device ------------------------------------------------------------------------------------


def obeyed_before(phase: str, event: str) -> bool:
    led_to = LED_TO.get(event)
    return led_to is not None and CLIENT_PHASES.index(led_to) <= CLIENT_PHASES.index(phase)


def client_refusal(phase: str, event: str) -> tuple[type[SecaggError], str]:
    if event == "VectorReady":
        return LocalProtocolError, "vector-not-due"
    if phase == "advertised":
        return RemoteProtocolError, "frame-kind"  # nothing but a roster is even verified
    return RemoteProtocolError, "message-not-due"


@pytest.mark.parametrize("event", CLIENT_EVENTS)
@pytest.mark.parametrize("phase", [*CLIENT_PHASES, *CLIENT_TERMINAL])
def test_client_cell(phase: str, event: str) -> None:
    run = recorded_run()
    config, state, given = run.device.config, client_state(run, phase), client_event(run, event)
    before = laid_open(state)
    if (phase, event) in CLIENT:
        after, effects = client.step(config, state, given, run.tools())
        assert after.phase in CLIENT[phase, event]
        assert effects
        assert (after.phase == "failed") == (event in ("Abort", "Cancel"))
    elif phase in CLIENT_TERMINAL or obeyed_before(phase, event):
        after, effects = client.step(config, state, given, run.tools())
        assert after is state
        assert effects == ()
    else:
        error, reason = client_refusal(phase, event)
        with pytest.raises(SecaggError) as caught:
            client.step(config, state, given, run.tools())
        assert (type(caught.value), caught.value.reason) == (error, reason)
        if reason == "message-not-due":
            due = sorted(due for known, due in CLIENT if known == phase)
            assert (caught.value.expected, caught.value.found) == (due, event)
    assert laid_open(state) == before


@pytest.mark.parametrize("event", sorted(LED_TO))
@pytest.mark.parametrize("phase", CLIENT_PHASES)
def test_another_message_of_a_kind_that_was_obeyed_is_refused(phase: str, event: str) -> None:
    if not obeyed_before(phase, event):
        return
    run = recorded_run()
    state = run.client_states[phase]
    assert not isinstance(state, client.Advertised)
    # Its digest is not the one in the journal, whatever its bytes are.
    number = messages.KINDS[getattr(messages, event)][0]
    session = replace(state.session, accepted={**state.session.accepted, number: bytes(32)})
    state = replace(state, session=session)
    before = laid_open(state)
    with pytest.raises(RemoteProtocolError) as caught:
        client.step(run.device.config, state, client_event(run, event), run.tools())
    assert caught.value.reason == ("frame-kind" if event == "Roster" else "message-changed")
    assert laid_open(state) == before


# -- the aggregator --------------------------------------------------------------------------------


def is_late(phase: str, event: str) -> bool:
    """A device's message that was due before: written down without the table's own function."""
    due = {"Deals": 0, "Refusal": 0, "Ready": 1, "Complaint": 1}
    due |= {"MaskedInput": 2, "Confirmation": 3, "Unmask": 4}
    return event in due and due[event] < SERVER_PHASES.index(phase)


@pytest.mark.parametrize("event", SERVER_EVENTS)
@pytest.mark.parametrize("phase", [*SERVER_PHASES, *SERVER_TERMINAL])
def test_server_cell(phase: str, event: str) -> None:
    run = recorded_run()
    state, given = server_state(run, phase, event), server_event(run, event)
    before = laid_open(state)
    if (phase, event) in SERVER:
        after, _ = server.step(run.task.server, state, given)
        assert after.phase in SERVER[phase, event]
    elif phase in SERVER_TERMINAL or is_late(phase, event):
        after, effects = server.step(run.task.server, state, given)
        assert after is state
        assert effects == ()
    else:
        from_device = isinstance(given, server.Received)
        error = RemoteProtocolError if from_device else LocalProtocolError
        with pytest.raises(error) as caught:
            server.step(run.task.server, state, given)
        assert caught.value.reason == ("message-not-due" if from_device else "event-not-due")
        due = sorted(due for known, due in SERVER if known == phase)
        assert (caught.value.expected, caught.value.found) == (due, event)
        if isinstance(caught.value, RemoteProtocolError):
            assert caught.value.culprit == state.facts.identity(run.index)
    assert laid_open(state) == before


CHANGES: dict[str, dict[str, Any]] = {
    "Deals": {"deals": ()},
    "MaskedInput": {"vector_digest": bytes(32)},
    "Confirmation": {"survivor_set_digest": bytes(32)},
}


@pytest.mark.parametrize("event", CHANGES)
@pytest.mark.parametrize("phase", SERVER_PHASES)
def test_what_a_device_said_before_stands(phase: str, event: str) -> None:
    if not is_late(phase, event):
        return
    run = recorded_run()
    state, given = run.server_states[phase], server_event(run, event)
    before = laid_open(state)
    after, effects = server.step(run.task.server, state, given)
    assert after is state
    assert effects == ()
    said, _ = messages.peek(given.message, getattr(messages, event))
    other = run.sign_as_device(msgspec.structs.replace(said, **CHANGES[event]))
    with pytest.raises(RemoteProtocolError) as caught:
        server.step(run.task.server, state, server.Received(run.index, other, given.now_s))
    assert caught.value.reason == "message-changed"
    assert caught.value.culprit == state.facts.identity(run.index)
    assert laid_open(state) == before


# -- the tables ------------------------------------------------------------------------------------


def handled(machine: Callable[..., object], table: Cells) -> set[tuple[str, str]]:
    """(phase, event) of every case of the one ``match`` in a function; ``_``: wherever due."""
    tree = ast.parse(inspect.getsource(machine))
    (match,) = (node for node in ast.walk(tree) if isinstance(node, ast.Match))
    found = set()
    for case in match.cases:
        assert isinstance(case.pattern, ast.MatchSequence)
        states, events = (
            [getattr(inspect.getmodule(machine), name) for name in re.findall(r"(\w+)\(", text)]
            for text in map(ast.unparse, case.pattern.patterns)
        )
        for event in (kind.__name__ for kind in events):
            phases = [s.phase for s in states] or [p for p, due in table if due == event]
            found |= {(phase, event) for phase in phases}
    return found


def test_every_row_has_a_handler_and_every_handler_a_row() -> None:
    of_devices = handled(server_machine._take, SERVER)
    of_driver = handled(server_machine._follow, SERVER)
    assert of_devices | of_driver == set(SERVER)
    assert not of_devices & of_driver
    of_messages = handled(client_machine._obey, CLIENT)
    rest = {(phase, event) for phase, event in CLIENT if event in ("VectorReady", "Cancel")}
    assert of_messages | rest == set(CLIENT)
    assert not of_messages & rest


def test_every_phase_is_reachable_and_every_target_is_a_phase() -> None:
    for table, start, terminal in (
        (CLIENT, "advertised", CLIENT_TERMINAL),
        (SERVER, "sharing", SERVER_TERMINAL),
    ):
        phases = {phase for phase, _ in table}.union(terminal)
        targets = {target for row in table.values() for target in row}
        assert targets | {start} == phases
        assert all(phase not in terminal for phase, _ in table)
    assert set(SERVER_PHASES) == {phase for phase, _ in SERVER}
