"""Every target in both tables is one to which the real machine goes, and no step goes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

import msgspec
import pytest

from docs.states import Cells, cells
from secagg import client, messages, server
from secagg.client import transitions as of_device
from secagg.keys import signing_key
from secagg.server import transitions as of_cohort
from secagg.simulation import Drop, make_task, run_cohort
from tests.kits.protocol_run import Run, message_name, one_hot, recorded_run

CLIENTS = 5
CLIENT, SERVER = cells(of_device.TABLE), cells(of_cohort.TABLE)
Move = tuple[str, str, str]


def moves_of(table: Cells) -> set[Move]:
    return {(*cell, target) for cell, targets in table.items() for target in targets}


def recording(patch: pytest.MonkeyPatch, machine: ModuleType) -> set[Move]:
    """Every move of the machine from now on: (phase, event, next phase)."""
    moves: set[Move] = set()
    step = machine.step

    def recorded(config, state, event, *tools):
        after, effects = step(config, state, event, *tools)
        if after is not state or isinstance(event, server.Tick):  # else it was passed over
            moves.add((state.phase, message_name(event), after.phase))
        return after, effects

    patch.setattr(machine, "step", recorded)
    return moves


def signed_complaint(run: Run) -> server.Received:
    """The recorded device accuses the dealer of the first deal in its inbox."""
    inbox, _ = messages.peek(run.client_events["Inbox"].message, messages.Inbox)
    deal = inbox.deals[0]
    accused = messages.peek(deal, messages.Deal)[0].sender
    ctx = run.aggregator.state.ctx
    complaint = messages.Complaint(ctx, run.index, (accused,), (deal,), b"n" * 32)
    return server.Received(run.index, run.sign_as_device(complaint), run.aggregator.now_s)


def refuse_one_by_one(
    run: Run, count: int, end: str, *, before: Sequence[server.Event] = ()
) -> None:
    """Devices refuse the roster, the recorded one first, after others have dealt."""
    state = run.server_states["sharing"]
    for event in before:
        state, _ = server.step(run.task.server, state, event)
    for index in sorted(range(CLIENTS), key=lambda index: index != run.index)[:count]:
        number = run.aggregator.numbers[index]
        key = signing_key(run.task.devices[number].identity)
        refusal = messages.Refusal(state.ctx, index, "partner-unknown", -1)
        said = server.Received(index, messages.sign(refusal, state.ctx, key), run.aggregator.now_s)
        state, (refused, *_) = server.step(run.task.server, state, said)
        assert refused == server.Refused(index, "partner-unknown", -1)
    assert state.phase == end


def exclude_one_by_one(run: Run, phase: str) -> None:
    """The aggregator bars devices that it still waits for, until the others cannot go on; and the
    last one that it waits for."""
    state, now_s = run.server_states[phase], run.aggregator.now_s
    for index in range(CLIENTS):
        if state.phase == phase:
            state, _ = server.step(run.task.server, state, server.Exclude(index, now_s))
    assert state.phase == "aborted"
    assert state.reason == "too-few-left"
    events = [event for before, event in run.aggregator.trace if before.phase == phase]
    last = server.Exclude(events[-1].index, now_s)
    state = run.server_states[phase]
    for event in (*events[:-1], last):
        state, _ = server.step(run.task.server, state, event)
    assert state.phase != phase


def phase_again(run: Run, phase: str, *, hopeless: bool, complaint: bool = False) -> None:
    """All events of a recorded phase once more; ``hopeless``: to the wrong end, since no secret
    can be opened, or one that was opened is not the dealer's."""
    state = run.server_states[phase]
    if hopeless:
        first, *rest = state.facts.adverts
        forged = msgspec.structs.replace(first, self_seed_commitment=bytes(32))
        threshold = state.facts.threshold if phase == "unmasking" else CLIENTS
        facts = replace(state.facts, adverts=(forged, *rest), threshold=threshold)
        state = replace(state, facts=facts)
    events = [event for before, event in run.aggregator.trace if before.phase == phase]
    if complaint:
        events = [event for event in events if event.index != run.index] + [signed_complaint(run)]
    for event in events:
        state, _ = server.step(run.task.server, state, event)
        if state.phase != phase:
            return


def test_every_target_of_the_aggregator_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    run, task = recorded_run(), make_task(CLIENTS, CLIENTS, slice_length=4, survivors_min=3)
    moves = recording(monkeypatch, server)
    for drop in Drop:
        for lost in (1, 3):
            run_cohort(task, one_hot(CLIENTS), drops=dict.fromkeys(range(lost), drop))
    for hopeless in (False, True):
        for phase in ("sharing", "checking", "masking", "confirming", "unmasking"):
            phase_again(run, phase, hopeless=hopeless)
        phase_again(run, "checking", hopeless=hopeless, complaint=True)
    server.step(run.task.server, run.server_states["checking"], signed_complaint(run))
    refuse_one_by_one(run, 2, "aborted")  # three are left, of whom nobody has t neighbours
    dealt = [event for before, event in run.aggregator.trace if before.phase == "sharing"]
    refuse_one_by_one(run, 1, "checking", before=[e for e in dealt if e.index != run.index])
    for phase in dict.fromkeys(phase for phase, _ in SERVER):
        state = run.server_states[phase]
        server.step(run.task.server, state, server.Tick(0.0))
        server.step(run.task.server, state, server.Cancel("task-paused", 0.0))
        if phase in ("sharing", "checking"):
            server.step(run.task.server, state, server.Exclude(0))
            exclude_one_by_one(run, phase)
        if phase in ("opening", "releasing"):
            server.step(run.task.server, state, server.SumRefused("release-failed", 0.0))
    assert moves == moves_of(SERVER)


def broken(run: Run) -> Iterator[tuple[str, client.Event]]:
    """Per phase a message that is authentic, for this exchange, and against the rules."""
    for name, changes in {
        "Roster": {"cohort": b"c"},
        "Inbox": {"deals": (b"",)},
        "MaskingSet": {"members": ()},
        "SurvivorSet": {"members": ()},
        "Confirmations": {"confirmations": ()},
    }.items():
        genuine, _ = messages.peek(run.client_events[name].message, getattr(messages, name))
        changed = msgspec.structs.replace(genuine, **changes)
        signed = run.sign(changed, ctx=b"" if name == "Roster" else None)
        (phase,) = (phase for phase, event in CLIENT if event == name)
        yield phase, client.Received(signed, run.aggregator.now_s)


def test_every_target_of_a_device_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded_run()
    moves = recording(monkeypatch, client)

    def step(phase: str, event: client.Event) -> None:
        client.step(run.device.config, run.client_states[phase], event, run.tools())

    abort = messages.Abort(run.aggregator.state.facts.cohort, "too-few-vectors")
    received = client.Received(run.sign(abort), run.aggregator.now_s)
    for phase, event in CLIENT:
        if event == "Abort":
            step(phase, received)
        elif event == "Cancel":
            step(phase, client.Cancel("deadline", "The device's own deadline passed."))
        else:
            step(phase, run.client_events[event])
    for phase, message in broken(run):
        step(phase, message)
    assert moves == moves_of(CLIENT)


def test_a_step_that_the_table_does_not_know_is_a_bug_and_gives_no_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = recorded_run()
    for tables, machine, config, state, event, tools in (
        (
            of_device,
            client,
            run.device.config,
            run.client_states["advertised"],
            run.client_events["Roster"],
            (run.tools(),),
        ),
        (
            of_cohort,
            server,
            run.task.server,
            run.server_states["opening"],
            run.server_events["SumUnmasked"],
            (),
        ),
    ):
        name = message_name(event)
        (kind,) = (kind for kind in tables.TABLE[type(state)] if kind.__name__ == name)
        target, *_ = tables.TABLE[type(state)][kind]
        assert target.phase not in ("failed", "aborted")
        elsewhere = {**tables.TABLE, type(state): {kind: (type(state),)}}
        monkeypatch.setattr(tables, "TABLE", elsewhere)
        with pytest.raises(
            AssertionError, match=f"{state.phase} may not become {target.phase} on {name}"
        ):
            machine.step(config, state, event, *tools)
