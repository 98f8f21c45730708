"""A device's machine: what stands, what a driver hears, how it ends, and when secrets leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secagg import client, messages
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.simulation import EPOCH_S, seeded_tools
from tests.kits.protocol_run import Run, recorded_run, secrets_in
from tests.kits.said import said
from tests.kits.shown import (
    ADVERTISED,
    CLIENTS,
    CONFIG,
    RUN,
    SHARED,
    roster,
    rules,
)


def test_an_abort_of_another_cohort_changes_nothing() -> None:
    run = recorded_run()
    signed = run.sign(messages.Abort(b"other" * 6 + b"xx", "too-few-vectors"))
    with pytest.raises(RemoteProtocolError, match="message-context"):
        client.step(
            run.device.config,
            run.client_states["shared"],
            client.Received(signed, EPOCH_S),
            run.tools(),
        )


def test_refusals_name_the_message() -> None:
    state = RUN.client_states["uploading"]
    number = messages.KINDS[messages.MaskingSet][0]
    session = replace(state.session, accepted={**state.session.accepted, number: bytes(32)})
    with pytest.raises(RemoteProtocolError, match="Another MaskingSet was obeyed") as caught:
        client.step(
            CONFIG, replace(state, session=session), RUN.client_events["MaskingSet"], RUN.tools()
        )
    assert said(caught.value) == ("message-changed", None, None)
    with pytest.raises(RemoteProtocolError, match="Receipt is not due") as caught:
        client.step(CONFIG, state, RUN.client_events["Receipt"], RUN.tools())
    assert said(caught.value) == ("message-not-due", ["Abort", "Cancel", "SurvivorSet"], "Receipt")


def test_the_end_says_why() -> None:
    """The text of a failed exchange holds the sentence, the reason and both values."""
    signed = RUN.sign(roster(task="other"), ctx=b"")
    state, effects = client.step(CONFIG, ADVERTISED, client.Received(signed, EPOCH_S), RUN.tools())
    assert isinstance(state, client.Failed)
    assert effects[1:] == (state,)  # after its signed word
    assert (state.reason, state.culprit) == ("roster-manifest", None)
    assert state.message.startswith("The roster is for another task or manifest. [roster-manifest]")
    assert "found ('other'," in state.message
    hopeless = rules(corrupt_max=CLIENTS - 1)  # no threshold serves such a cohort
    state, _ = client.step(hopeless, ADVERTISED, RUN.client_events["Roster"], RUN.tools())
    assert isinstance(state, client.Failed)
    assert state.reason == "threshold-unreachable"
    cohort = RUN.aggregator.state.facts.cohort
    for reason, said_as, text in (
        ("left-out", "left-out", "The cohort goes on without this device."),
        ("task-paused", "cohort-aborted", "The aggregator ended the cohort: 'task-paused'."),
    ):
        abort = client.Received(RUN.sign(messages.Abort(cohort, reason)), EPOCH_S)
        state, _ = client.step(CONFIG, SHARED, abort, RUN.tools())
        assert state == client.Failed(said_as, text, None)


# -- the vector -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (np.ones(6, "<u4"), "vector-shape"),
        (np.ones((7, 1), "<u4"), "vector-shape"),
        (np.ones(7, "<u8"), "vector-shape"),
        (np.ones(7, np.int64), "vector-shape"),
        (np.zeros(7, "<u4"), "vector-checks"),
    ],
)
def test_a_vector_that_is_not_the_payload_is_a_misuse(vector: np.ndarray, reason: str) -> None:
    run = recorded_run()
    state = run.client_states["awaiting-vector"]
    with pytest.raises(LocalProtocolError, match=reason):
        client.step(run.device.config, state, client.VectorReady(vector), run.tools())


def misuse(run: Run, phase: str, vector: np.ndarray) -> SecaggError:
    with pytest.raises(LocalProtocolError) as caught:
        client.step(CONFIG, run.client_states[phase], client.VectorReady(vector), run.tools())
    return caught.value


def test_a_driver_hears_what_is_wrong_with_its_vector() -> None:
    good = RUN.client_events["VectorReady"].vector
    assert said(misuse(RUN, "shared", good)) == ("vector-not-due", "awaiting-vector", "shared")
    assert said(misuse(RUN, "awaiting-vector", good[1:].astype("<u8"))) == (
        "vector-shape",
        ((len(good),), "uint32"),
        ((len(good) - 1,), "uint64"),
    )
    assert said(misuse(RUN, "awaiting-vector", np.zeros_like(good))) == ("vector-checks", 1, None)


def test_a_second_vector_is_never_masked() -> None:
    """Two vectors under one mask would show their difference."""
    run = recorded_run()
    event = run.client_events["VectorReady"]
    with pytest.raises(LocalProtocolError, match="vector-not-due"):
        client.step(run.device.config, run.client_states["uploading"], event, run.tools())


def test_masking_leaves_the_given_vector_as_it_is() -> None:
    run = recorded_run()
    event = run.client_events["VectorReady"]
    assert isinstance(event, client.VectorReady)
    before = event.vector.copy()
    client.step(run.device.config, run.client_states["awaiting-vector"], event, run.tools())
    assert np.array_equal(event.vector, before)


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "gone"),
    [
        ("checked", ("mask_secret", "channel_secret")),
        ("awaiting-vector", ("mask_secret", "channel_secret")),
        ("uploading", ("mask_secret", "channel_secret", "self_seed", "pair_seeds")),
        ("confirmed", ("mask_secret", "channel_secret", "self_seed", "pair_seeds")),
    ],
)
def test_secrets_leave_as_early_as_they_can(phase: str, gone: tuple[str, ...]) -> None:
    held = secrets_in(recorded_run().client_states[phase])
    assert held
    assert not any(f".{name}" in path for name in gone for path in held)


@pytest.mark.parametrize("phase", ["unmasked", "finished"])
def test_nothing_secret_is_left_at_the_end(phase: str) -> None:
    assert secrets_in(recorded_run().client_states[phase]) == []


@pytest.mark.parametrize("phase", list(recorded_run().client_states))
def test_no_state_or_effect_prints_a_secret(phase: str) -> None:
    run = recorded_run()
    state = run.client_states[phase]
    text = repr(state)
    for name in ("mask_secret", "self_seed", "channel_secret"):
        secret = getattr(state, name, None)
        if secret is not None:
            assert repr(secret.reveal())[2:-1] not in text
            assert secret.reveal().hex() not in text
    event = run.client_events["Confirmations"]
    _, (send,) = client.step(
        run.device.config, run.client_states["confirmed"], event, seeded_tools(1)
    )
    assert repr(send) == "Send()"
