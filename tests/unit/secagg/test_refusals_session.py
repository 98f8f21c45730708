"""What a device says after the roster when it refuses: sets, confirmations, deals, vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from secagg import client, messages, sealing
from secagg.client import checks, deals
from secagg.context import (
    CHANNEL_KEY,
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    masking_set_digest,
    seal_info,
    survivor_set_digest,
)
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.keys import identity_public_key, signing_key
from secagg.messages import Confirmation, Deal, Inbox
from secagg.simulation import EPOCH_S
from tests.kits.protocol_run import Run
from tests.kits.said import said
from tests.kits.shown import (
    ADVERTISED,
    CLIENTS,
    CONFIG,
    CTX,
    EVERYONE,
    FIRST,
    INBOX,
    INDEX,
    OTHERS,
    OWN,
    RUN,
    SESSION,
    SHARED,
    STRANGER,
    Case,
    identity,
    removable,
    roster,
    rules,
)


def confirmation(index: int, survivors: tuple[int, ...] = EVERYONE, **changes: Any) -> bytes:
    """Device ``index`` confirms; it holds the recorded run's real keys."""
    masking = masking_set_digest(CTX, EVERYONE)
    sets = (masking, survivor_set_digest(CTX, masking, survivors))
    message = msgspec.structs.replace(Confirmation(CTX, index, *sets), **changes)
    number = RUN.aggregator.numbers[index]
    return messages.sign(message, CTX, signing_key(RUN.task.devices[number].identity))


def confirm(*signed: bytes, config: client.ClientConfig = CONFIG, session: Any = SESSION) -> None:
    checks.check_confirmations(config, session, EVERYONE, EVERYONE, signed)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same session on a ring: two neighbours each."""
    monkeypatch.setattr("secagg.graph.harary.COMPLETE_GRAPH_MAX", 3)
    session = replace(SESSION, degree=2, order_seed=bytes(32), threshold=2)
    return replace(session, neighbours=session.graph.neighbours(INDEX))


def private_key(label: str) -> Any:
    secret = SHARED.mask_secret if label == MASK_KEY else SHARED.channel_secret
    return sealing.kem_private_key(secret, label)


def sealed_by_first(label: str, kind: bytes, contents: bytes) -> Deal:
    """A deal of the device FIRST, with these contents sealed to this device."""
    secret = SHARED.mask_secret if label == MASK_KEY else SHARED.channel_secret
    info = seal_info(CTX, identity(FIRST), OWN, kind)
    sealed = sealing.hpke_seal(sealing.kem_public_key(secret, label), info, contents)
    return Deal(CTX, FIRST, INDEX, sealed, sealed, (bytes(32), bytes(32)))


CASES: dict[str, Case] = {
    "a malformed set": Case(
        lambda: checks.check_masking_set(CONFIG, SESSION, (1, 1), OTHERS), "masking-set-malformed"
    ),
    "a set without me": Case(
        lambda: checks.check_survivor_set(CONFIG, SESSION, EVERYONE, OTHERS),
        "survivor-set-without-me",
    ),
    "a set too small": Case(
        lambda: checks.check_masking_set(CONFIG, SESSION, tuple(sorted((INDEX, FIRST))), OTHERS),
        "masking-set-too-small",
        "at least 3",
        2,
    ),
    "a dealer whose deal was bad": Case(
        lambda: checks.check_masking_set(CONFIG, SESSION, EVERYONE, OTHERS[1:]),
        "masking-set-dealer",
        None,
        [FIRST],
    ),
    "too few neighbours mask": Case(
        lambda: checks.check_masking_set(
            CONFIG, replace(SESSION, threshold=CLIENTS), EVERYONE, OTHERS
        ),
        "masking-set-neighbours",
        f"at least {CLIENTS}",
        CLIENTS - 1,
    ),
    "a survivor that did not mask": Case(
        lambda: checks.check_survivor_set(
            CONFIG, SESSION, tuple(i for i in EVERYONE if i != FIRST), EVERYONE
        ),
        "survivor-set-outside",
        None,
        [FIRST],
    ),
    "more drop-outs than the noise makes up for": Case(
        lambda: checks.check_survivor_set(
            removable(1), SESSION, EVERYONE, tuple(sorted((INDEX, *OTHERS[:2])))
        ),
        "survivor-set-noise",
        "at most 1",
        2,
    ),
    "a confirmation of a stranger": Case(
        lambda: confirm(
            messages.sign(Confirmation(CTX, FIRST, b"", b""), CTX, signing_key(STRANGER))
        ),
        "confirmation-signer",
        None,
        identity_public_key(STRANGER).hex(),
    ),
    "a confirmation of other sets": Case(
        lambda: confirm(confirmation(FIRST, survivor_set_digest=b"u" * 32)),
        "confirmations-differ",
        survivor_set_digest(CTX, masking_set_digest(CTX, EVERYONE), EVERYONE).hex(),
        (b"u" * 32).hex(),
    ),
    "too few confirmations": Case(
        lambda: confirm(*(confirmation(index) for index in OTHERS[:2])),
        "confirmations-too-few",
        "at least 3",
        2,
    ),
    "an inbox out of order": Case(
        lambda: deals.open_inbox(SHARED, Inbox(CTX, INBOX.deals[::-1])),
        "inbox-dealer",
        f"a neighbour above {OTHERS[-1]}",
        OTHERS[-2],
    ),
    "a deal of oneself": Case(
        lambda: deals.open_inbox(
            SHARED,
            Inbox(CTX, (RUN.sign_as_device(Deal(CTX, INDEX, FIRST, b"", b"", ())),)),
        ),
        "inbox-dealer",
        "a neighbour above -1",
        INDEX,
    ),
    "a pair seed of a wrong size": Case(
        lambda: deals.open_pair_seed(
            SESSION, sealed_by_first(MASK_KEY, KIND_PAIR_SEED, b"short"), private_key(MASK_KEY)
        ),
        "deal-pair-seed",
        32,
        5,
        identity(FIRST),
    ),
    "shares other than the signed hashes": Case(
        lambda: deals.open_shares(
            SESSION,
            sealed_by_first(CHANNEL_KEY, KIND_SHARES, bytes(66)),
            private_key(CHANNEL_KEY),
            0,
        ),
        "deal-shares",
        culprit=identity(FIRST),
    ),
    "a deal for another": Case(
        lambda: deals.verify_deal(
            SESSION, INDEX, RUN.sign_as_device(Deal(CTX, INDEX, FIRST, b"", b"", ()))
        ),
        "deal-address",
        (INDEX, INDEX),
        (INDEX, FIRST),
        OWN,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_demand_that_is_not_met(name: str) -> None:
    case = CASES[name]
    with pytest.raises(RemoteProtocolError) as caught:
        case.call()
    assert said(caught.value) == (case.reason, case.expected, case.found)
    assert caught.value.culprit == case.culprit


def test_the_genuine_sets_pass_and_so_do_their_bounds() -> None:
    checks.check_masking_set(CONFIG, SESSION, EVERYONE, OTHERS)
    checks.check_survivor_set(removable(2), SESSION, EVERYONE, tuple(sorted((INDEX, *OTHERS[:2]))))
    confirm(*(confirmation(index) for index in OTHERS[:3]))


def test_on_a_ring_more_than_half_of_the_roster_must_confirm(ring: Any) -> None:
    near = ring.neighbours
    far = [index for index in OTHERS if index not in near]
    assert len(near) == len(far) == 2
    config = rules(corrupt_max=1)
    needed = (CLIENTS + 1) // 2 + 1
    assert needed == 4
    some = [confirmation(index) for index in (*near, far[0])]
    with pytest.raises(RemoteProtocolError) as caught:
        confirm(*some, config=config, session=ring)
    assert said(caught.value) == ("confirmations-too-few", f"at least {needed}", 3)
    confirm(*some, confirmation(far[1]), config=config, session=ring)


@pytest.mark.parametrize("far_first", [False, True])
def test_on_a_ring_every_confirmation_that_counts_is_verified(ring: Any, far_first: bool) -> None:
    near = list(ring.neighbours)
    far = [index for index in OTHERS if index not in near]
    order = [*far, *near] if far_first else [*near, *far]
    for forged in order:
        signed = {index: confirmation(index) for index in order}
        signed[forged] = signed[forged][:-1] + bytes([signed[forged][-1] ^ 1])
        with pytest.raises(RemoteProtocolError) as caught:
            confirm(*signed.values(), config=rules(corrupt_max=1), session=ring)
        assert caught.value.reason == "signature-invalid"


# -- the driver's misuse ---------------------------------------------------------------------------


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
