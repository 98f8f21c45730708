"""The aggregator's machine: who may report in, deadlines, duplicates, replay, secrets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from secagg import client, messages, server
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.keys import issue_certificate, signing_key
from secagg.messages import Advert
from secagg.secret import Secret
from secagg.server.transitions import TABLE
from secagg.simulation import EPOCH_S, Drop, Hooks, LocalDevices, SimulatedTask, drive, make_task
from tests.kits.protocol_run import (
    CLIENTS,
    RecordedAggregator,
    make_recorded,
    message_name,
    recorded_run,
    secrets_in,
)

_replace = msgspec.structs.replace


def small_task(**settings: int) -> SimulatedTask:
    return make_task(CLIENTS, 5, slice_length=4, **{"survivors_min": 3, **settings})


def adverts_of(task: SimulatedTask) -> list[bytes]:
    return [device.advert for device in make_recorded(task)]


def open_cohort(task: SimulatedTask, adverts: list[bytes]) -> server.State:
    state, _ = server.open_cohort(
        task.server, cohort=bytes(32), attempt=0, adverts=adverts, now_s=EPOCH_S
    )
    return state


# -- adverts and rosters ---------------------------------------------------------------------------


def test_a_genuine_advert_is_accepted() -> None:
    task = small_task()
    advert = server.check_advert(task.server, adverts_of(task)[0], EPOCH_S)
    assert advert.certificate == task.devices[0].certificate


LOW_ORDER = bytes(1184) + bytes(32)  # X25519's all-zero point
BAD_ADVERTS: dict[str, tuple[str, Callable[[Advert], Advert]]] = {
    "another task": ("advert-manifest", lambda a: _replace(a, task="other")),
    "another manifest": ("advert-manifest", lambda a: _replace(a, manifest_digest=bytes(32))),
    "expired": ("advert-expired", lambda a: _replace(a, expires_at=EPOCH_S - 301)),
    "a short nonce": ("advert-malformed", lambda a: _replace(a, nonce=b"n")),
    "a long commitment": (
        "advert-malformed",
        lambda a: _replace(a, self_seed_commitment=bytes(33)),
    ),
    "a short model digest": ("advert-malformed", lambda a: _replace(a, model_digest=b"m")),
    "a short mask key": ("advert-malformed", lambda a: _replace(a, mask_key=b"k" * 1215)),
    "one key for both": ("advert-malformed", lambda a: _replace(a, channel_key=a.mask_key)),
    "a low-order key": ("kem-key-malformed", lambda a: _replace(a, mask_key=LOW_ORDER)),
    "a key that is not a key": (
        "kem-key-malformed",
        lambda a: _replace(a, channel_key=b"\xff" * 1216),
    ),
    "another device's certificate": (
        "advert-signer",
        lambda a: _replace(a, certificate=small_task().devices[1].certificate),
    ),
    "an unknown partner": (
        "partner-unknown",
        lambda a: _replace(
            a,
            certificate=issue_certificate(
                Secret(b"q" * 32), a.certificate.identity_key, EPOCH_S + 1000
            ),
        ),
    ),
    "an expired certificate": (
        "certificate-expired",
        lambda a: _replace(a, certificate=_replace(a.certificate, not_after=EPOCH_S - 301)),
    ),
    "a prolonged certificate": (
        "certificate-invalid",
        lambda a: _replace(a, certificate=_replace(a.certificate, not_after=EPOCH_S + 10**9)),
    ),
}


@pytest.mark.parametrize("case", BAD_ADVERTS)
def test_a_bad_advert_is_refused_and_its_sender_named(case: str) -> None:
    reason, change = BAD_ADVERTS[case]
    task = small_task()
    advert, _ = messages.peek(adverts_of(task)[0], Advert)
    signed = messages.sign(change(advert), b"", signing_key(task.devices[0].identity))
    with pytest.raises(RemoteProtocolError) as caught:
        server.check_advert(task.server, signed, EPOCH_S)
    assert caught.value.reason == reason
    assert caught.value.culprit == task.devices[0].certificate.identity_key


def test_an_advert_with_a_broken_signature_is_refused() -> None:
    task = small_task()
    signed = adverts_of(task)[0]
    with pytest.raises(RemoteProtocolError, match="signature-invalid"):
        server.check_advert(task.server, signed[:-1] + bytes([signed[-1] ^ 1]), EPOCH_S)


def test_the_roster_is_ordered_by_identity_key_whatever_the_order_of_the_adverts() -> None:
    task = small_task()
    adverts = adverts_of(task)
    forwards, backwards = open_cohort(task, adverts), open_cohort(task, adverts[::-1])
    assert forwards.roster == backwards.roster
    assert forwards.ctx == backwards.ctx
    keys = [entry.identity_key for entry in forwards.roster]
    assert keys == sorted(keys)


def test_what_is_no_cohort_is_refused() -> None:
    task = small_task()
    adverts = adverts_of(task)
    advert, _ = messages.peek(adverts[0], Advert)
    other_model = messages.sign(
        _replace(advert, model_digest=b"o" * 32), b"", signing_key(task.devices[0].identity)
    )
    for reason, chosen in (
        ("cohort-size", adverts[:-1]),
        ("cohort-size", [*adverts, adverts[0]]),
        ("cohort-twice", [*adverts[:-1], adverts[0]]),
        ("cohort-models", [other_model, *adverts[1:]]),
    ):
        with pytest.raises(LocalProtocolError, match=reason):
            open_cohort(task, chosen)


@pytest.mark.parametrize("change", ["cohort", "attempt"])
def test_the_context_is_another_for_another_cohort_or_attempt(change: str) -> None:
    task = small_task()
    adverts = adverts_of(task)
    first, _ = server.open_cohort(
        task.server, cohort=bytes(32), attempt=0, adverts=adverts, now_s=EPOCH_S
    )
    second, _ = server.open_cohort(
        task.server,
        cohort=b"2" * 32 if change == "cohort" else bytes(32),
        attempt=1 if change == "attempt" else 0,
        adverts=adverts,
        now_s=EPOCH_S,
    )
    assert first.ctx != second.ctx


# -- deadlines -------------------------------------------------------------------------------------

STEP_OF_PHASE = {
    "sharing": Drop.SHARE,
    "checking": Drop.CHECK,
    "masking": Drop.ANNOUNCE,
    "confirming": Drop.CONFIRM,
    "unmasking": Drop.UNMASK,
}
ABORTS = {
    "sharing": "too-few-dealers",
    "checking": "too-few-ready",
    "masking": "too-few-vectors",
    "confirming": "too-few-confirmations",
    "unmasking": "too-few-shares",
}


@pytest.mark.parametrize("phase", STEP_OF_PHASE)
def test_each_phase_ends_at_its_deadline(phase: str) -> None:
    task = small_task()
    everyone = dict.fromkeys(range(CLIENTS), STEP_OF_PHASE[phase])
    pool = LocalDevices(make_recorded(task, drops=everyone))
    aggregator = RecordedAggregator(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks()
    )
    result = drive(aggregator, pool)
    assert result.ended == server.Ended(ABORTS[phase], ())
    before, event = aggregator.trace[-1]
    assert before.phase == phase
    assert isinstance(event, server.Tick)
    assert event.now_s == before.deadline_s
    early = server.Tick(before.deadline_s - 0.001)
    assert server.step(task.server, before, early) == (before, ())
    assert secrets_in(result.state) == []


def test_a_wake_is_asked_for_at_the_deadline_of_every_phase_that_waits() -> None:
    """Each phase has its own time, counted from the event that began it."""
    run = recorded_run()
    names = ("share_s", "check_s", "masked_input_s", "confirm_s", "unmask_s")
    times = {name: 10.0 * place for place, name in enumerate(names, 1)}
    manifest = run.task.manifest
    changed = _replace(manifest, deadlines=_replace(manifest.deadlines, **times))
    config = replace(run.task.server, manifest=changed)
    after_s = dict(zip(STEP_OF_PHASE, times.values(), strict=True))
    for before, event in run.aggregator.trace:
        after, effects = server.step(config, before, event)
        wakes = [effect.at_s for effect in effects if isinstance(effect, server.Wake)]
        if after.phase == before.phase or after.phase not in after_s:
            assert wakes == []
            continue
        assert wakes == [after.deadline_s] == [event.now_s + after_s.pop(after.phase)]
    assert set(after_s) == {"sharing"}, "which open_cohort begins"
    assert math.isinf(run.server_states["opening"].deadline_s)
    sharing, effects = server.open_cohort(
        run.task.server,
        cohort=bytes(32),
        attempt=0,
        adverts=adverts_of(run.task),
        now_s=EPOCH_S,
    )
    assert effects[-1] == server.Wake(sharing.deadline_s)
    assert sharing.deadline_s == EPOCH_S + manifest.deadlines.share_s


@pytest.mark.parametrize(("drops", "goes_on"), [((), True), ((2,), True), ((1,), False)])
def test_survivors_whose_noise_does_not_do_are_not_opened(
    drops: tuple[int, ...], goes_on: bool
) -> None:
    run = recorded_run()
    masking = run.server_states["masking"]
    facts = replace(masking.facts, threshold=2, removable_drops=drops)
    state = replace(masking, facts=facts, added=frozenset({0, 2, 3}))
    after, _ = server.step(run.task.server, state, server.Tick(math.inf))
    assert after.phase == ("confirming" if goes_on else "aborted")
    assert goes_on or after.reason == "too-few-vectors"


# -- duplicates, order, replay ---------------------------------------------------------------------


def test_a_message_that_was_taken_before_does_nothing_in_any_later_phase() -> None:
    run = recorded_run()
    trace = run.aggregator.trace
    for place, (_, event) in enumerate(trace):
        if isinstance(event, server.Received):
            for state in {state.phase: state for state, _ in trace[place + 1 :]}.values():
                assert server.step(run.task.server, state, event) == (state, ())


def test_another_message_of_the_same_kind_is_refused_in_any_later_phase() -> None:
    run = recorded_run()
    event = run.server_events["Ready"]
    inbox, _ = messages.peek(run.client_events["Inbox"].message, messages.Inbox)
    evidence = inbox.deals[0]
    accused = messages.peek(evidence, messages.Deal)[0].sender
    ctx = run.aggregator.state.ctx
    complaint = messages.Complaint(ctx, run.index, (accused,), (evidence,), b"n" * 32)
    state, _ = server.step(run.task.server, run.server_states["checking"], event)
    late = server.Received(run.index, run.sign_as_device(complaint), EPOCH_S)
    with pytest.raises(RemoteProtocolError, match="message-changed"):
        server.step(run.task.server, state, late)


def test_a_log_of_events_replays_to_the_same_states_and_effects() -> None:
    run = recorded_run()
    adverts = [device.advert for device in make_recorded(run.task)]

    def replay() -> list[tuple[str, str, list[bytes]]]:
        state, effects = server.open_cohort(
            run.task.server, cohort=bytes(32), attempt=0, adverts=adverts, now_s=EPOCH_S
        )
        seen = []
        for _, event in run.aggregator.trace:
            state, effects = server.step(run.task.server, state, event)
            sent = [e.message for e in effects if isinstance(e, server.Deliver)]
            keys = [
                term.key.reveal()
                for e in effects
                if isinstance(e, server.RemoveMasks)
                for term in e.plan.terms
            ]
            seen.append((state.phase, repr(effects), sent + keys))
        return seen

    first = replay()
    assert first == replay()
    assert first[-1][0] == "released"


def test_a_vector_is_added_once_and_only_after_its_digest() -> None:
    run = recorded_run()
    masking = run.server_states["masking"]
    added = server.VectorAdded(run.index, EPOCH_S)
    with pytest.raises(LocalProtocolError, match="vector-not-due"):
        server.step(run.task.server, masking, added)
    state, _ = server.step(run.task.server, masking, run.server_events["MaskedInput"])
    state, _ = server.step(run.task.server, state, added)
    with pytest.raises(LocalProtocolError, match="vector-not-due"):
        server.step(run.task.server, state, added)


def test_a_vector_after_the_survivors_are_fixed_is_never_added() -> None:
    run = recorded_run()
    for phase in ("confirming", "unmasking", "opening", "releasing"):
        state = replace(run.server_states[phase], accepted={})
        with pytest.raises(LocalProtocolError, match="event-not-due"):
            server.step(run.task.server, state, server.VectorAdded(run.index, EPOCH_S))
        header = run.server_events["MaskedInput"]
        assert server.step(run.task.server, state, header) == (state, ())


def test_an_index_outside_the_roster_is_a_misuse() -> None:
    run = recorded_run()
    for index in (-1, CLIENTS):
        with pytest.raises(LocalProtocolError, match="index-out-of-roster"):
            server.step(
                run.task.server,
                run.server_states["sharing"],
                server.Received(index, b"", EPOCH_S),
            )


# -- who is told what ------------------------------------------------------------------------------


def test_a_device_that_is_left_out_is_told_at_once() -> None:
    task = small_task()
    devices = make_recorded(task, drops={1: Drop.ANNOUNCE})
    told: list[tuple[int, str]] = []

    def downward(number: int, signed: bytes) -> list[bytes]:
        message, _ = messages.peek(signed, *messages.KINDS)
        if isinstance(message, messages.Abort):
            told.append((number, message.reason))
        return [signed]

    pool = LocalDevices(devices)
    aggregator = RecordedAggregator(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks(downward=downward)
    )
    drive(aggregator, pool)
    assert told == [(1, "left-out")]


def test_contributors_get_a_receipt_and_the_left_out_do_not() -> None:
    task = small_task()
    devices = make_recorded(task, drops={1: Drop.UPLOAD})
    pool = LocalDevices(devices)
    aggregator = RecordedAggregator(
        task, pool.advertise(), cohort=bytes(32), attempt=0, hooks=Hooks()
    )
    drive(aggregator, pool)
    finished = {d.number for d in devices if isinstance(d.state, client.Finished)}
    assert finished == {0, 2, 3, 4}


@pytest.mark.parametrize("phase", [state.phase for state in TABLE])
def test_no_secret_is_left_when_a_cohort_ends(phase: str) -> None:
    run = recorded_run()
    state, effects = server.step(
        run.task.server, run.server_states[phase], server.Cancel("task-paused", EPOCH_S)
    )
    assert isinstance(state, server.Aborted)
    assert secrets_in(state) == []
    aborts = [e for e in effects if isinstance(e, server.Deliver)]
    assert len(aborts) == CLIENTS
    assert effects[-1] == server.Ended("task-paused", ())
    assert secrets_in(run.server_states["released"]) == []


def test_the_last_state_says_what_was_released() -> None:
    run = recorded_run()
    opening, releasing, released = (
        run.server_states[phase] for phase in ("opening", "releasing", "released")
    )
    for state in (opening, releasing, released):
        assert state.masking_set == state.survivors == tuple(range(CLIENTS))
    committed = run.server_events["ReleaseCommitted"]
    after, _ = server.step(run.task.server, releasing, replace(committed, release=7, leaf_index=9))
    assert (after.release, after.leaf_index) == (7, 9)
    assert after.masking_set == after.survivors == tuple(range(CLIENTS))


def test_shares_are_held_while_unmasking_and_forgotten_when_the_sum_is_open() -> None:
    run = recorded_run()
    unmasking = [s for s, _ in run.aggregator.trace if s.phase == "unmasking"][-1]
    assert secrets_in(unmasking) != []
    assert secrets_in(run.server_states["releasing"]) == []
    for state in run.server_states.values():
        for name in ("plan", "shares", "dealt", "signed_deals"):
            assert f"{name}=" not in repr(state)


def test_events_of_the_recorded_run_cover_every_kind_of_message() -> None:
    names = {message_name(event) for _, event in recorded_run().aggregator.trace}
    assert names >= {"Deals", "Ready", "MaskedInput", "VectorAdded", "Confirmation", "Unmask"}
