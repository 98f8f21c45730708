"""What a device says when it refuses: reason, both values, and the device that is to blame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from protocol_run import CLIENTS, Run, recorded_run
from said import said

from secagg import client, keys, messages
from secagg.client import checks, deals
from secagg.context import (
    CHANNEL_KEY,
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    advert_digest,
    masking_set_digest,
    seal_info,
    survivor_set_digest,
)
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.graph import Graph
from secagg.keys import identity_public_key, signing_key
from secagg.manifest import Noise
from secagg.messages import AdmittedModel, Confirmation, Deal, Inbox, Roster
from secagg.secret import Secret
from secagg.simulation import EPOCH_S

_replace = msgspec.structs.replace
RUN = recorded_run()
CONFIG = RUN.device.config
OWN = CONFIG.certificate.identity_key
ADVERTISED = RUN.client_states["advertised"]
ROSTER = messages.peek(RUN.client_events["Roster"].message, Roster)[0]
INBOX = messages.peek(RUN.client_events["Inbox"].message, Inbox)[0]
SHARED = RUN.client_states["shared"]
SESSION = RUN.client_states["checked"].session
INDEX, CTX = SESSION.index, SESSION.ctx
EVERYONE = tuple(range(CLIENTS))
OTHERS = tuple(index for index in EVERYONE if index != INDEX)
GRAPH = Graph(CLIENTS)
OWN_MODEL = ROSTER.models[0]
SHORT = AdmittedModel(1, b"short")
NEWER = AdmittedModel(OWN_MODEL.version + 1, b"m" * 32)
STRANGER = Secret(b"s" * 32)


def entries(changes: dict[int, dict[str, Any]]) -> tuple[messages.RosterEntry, ...]:
    return tuple(
        _replace(entry, **changes.get(place, {})) for place, entry in enumerate(ROSTER.entries)
    )


def roster(**changes: Any) -> Roster:
    return _replace(ROSTER, **changes)


def rules(**changes: Any) -> client.ClientConfig:
    manifest = CONFIG.manifest
    return replace(CONFIG, manifest=_replace(manifest, cohort=_replace(manifest.cohort, **changes)))


def removable(*drops: int) -> client.ClientConfig:
    noise = Noise("skellam", share_variance=1, honest_min=1, removable_drops=drops)
    return replace(CONFIG, manifest=_replace(CONFIG.manifest, noise=noise))


def identity(index: int) -> bytes:
    return ROSTER.entries[index].identity_key


def confirmation(index: int, survivors: tuple[int, ...] = EVERYONE, **changes: Any) -> bytes:
    """Device ``index`` confirms; it holds the recorded run's real keys."""
    masking = masking_set_digest(CTX, EVERYONE)
    sets = (masking, survivor_set_digest(CTX, masking, survivors))
    message = _replace(Confirmation(CTX, index, *sets), **changes)
    number = RUN.aggregator.numbers[index]
    return messages.sign(message, CTX, signing_key(RUN.task.devices[number].identity))


def confirm(*signed: bytes, config: client.ClientConfig = CONFIG, session: Any = SESSION) -> None:
    checks.check_confirmations(config, session, EVERYONE, EVERYONE, signed)


@pytest.fixture
def ring(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same session on a ring: two neighbours each."""
    monkeypatch.setattr("secagg.graph.COMPLETE_GRAPH_MAX", 3)
    session = replace(SESSION, degree=2, order_seed=bytes(32), threshold=2)
    return replace(session, neighbours=session.graph.neighbours(INDEX))


def private_key(label: str) -> Any:
    secret = SHARED.mask_secret if label == MASK_KEY else SHARED.channel_secret
    return keys.kem_private_key(secret, label)


def sealed_by_first(label: str, kind: bytes, contents: bytes) -> Deal:
    """A deal of the device FIRST, with these contents sealed to this device."""
    secret = SHARED.mask_secret if label == MASK_KEY else SHARED.channel_secret
    info = seal_info(CTX, identity(FIRST), OWN, kind)
    sealed = keys.hpke_seal(keys.kem_public_key(secret, label), info, contents)
    return Deal(CTX, FIRST, INDEX, sealed, sealed, (bytes(32), bytes(32)))


class Case(NamedTuple):
    call: Callable[[], Any]
    reason: str
    expected: object = None
    found: object = None
    culprit: bytes | None = None


def models_case(models: tuple[AdmittedModel, ...], **config: Any) -> Case:
    return Case(
        lambda: checks.check_models(rules(**config), ADVERTISED, roster(models=models)),
        "roster-models",
        f"distinct models of {config.get('versions_back', 0) + 1} consecutive versions at most",
        [(model.version, model.digest.hex()) for model in models],
    )


FIRST = OTHERS[0]
FIRST_ADVERT = dict(ROSTER.neighbour_adverts)[FIRST]
FIRST_MODEL = messages.peek(FIRST_ADVERT, messages.Advert)[0]
CASES: dict[str, Case] = {
    "no place": Case(
        lambda: checks.check_addressed(CONFIG, ADVERTISED, roster(index=CLIENTS)),
        "roster-index",
        f"below {CLIENTS}",
        CLIENTS,
    ),
    "another's place": Case(
        lambda: checks.check_addressed(CONFIG, ADVERTISED, roster(index=FIRST)),
        "roster-not-mine",
        advert_digest(ADVERTISED.advert).hex(),
        ROSTER.entries[FIRST].advert_digest.hex(),
    ),
    "another exchange": Case(
        lambda: checks.check_context(SESSION, messages.MaskingSet(b"c", ())),
        "message-context",
        CTX.hex(),
        b"c".hex(),
    ),
    "another cohort": Case(
        lambda: checks.check_context(SESSION, messages.Abort(b"c", "r")),
        "message-context",
        SESSION.cohort.hex(),
        b"c".hex(),
    ),
    "another task": Case(
        lambda: checks.check_task(CONFIG, ADVERTISED, roster(task="other"), EPOCH_S),
        "roster-manifest",
        (CONFIG.manifest.task, CONFIG.manifest_digest.hex()),
        ("other", CONFIG.manifest_digest.hex()),
    ),
    "an attempt out of range": Case(
        lambda: checks.check_task(CONFIG, ADVERTISED, roster(attempt=1 << 32), EPOCH_S),
        "roster-malformed",
    ),
    "an expired advert": Case(
        lambda: checks.check_task(CONFIG, ADVERTISED, ROSTER, ADVERTISED.expires_at + 1_000),
        "advert-expired",
        ADVERTISED.expires_at,
        f"{ADVERTISED.expires_at + 1_000}",
    ),
    "no model": models_case(()),
    "a negative version": models_case((AdmittedModel(-1, OWN_MODEL.digest),)),
    "falling versions": models_case((NEWER, OWN_MODEL), versions_back=2),
    "one model under two versions": models_case(
        (OWN_MODEL, _replace(NEWER, digest=OWN_MODEL.digest)), versions_back=2
    ),
    "a short digest": models_case((SHORT,)),
    "versions too far apart": models_case((OWN_MODEL, NEWER)),
    "a model of too few": Case(
        lambda: checks.check_models(
            rules(versions_back=1),
            ADVERTISED,
            roster(models=(OWN_MODEL, NEWER), entries=entries({FIRST: {"model": 1}})),
        ),
        "roster-models",
        "at least 3 for each of 2",
        [(0, CLIENTS - 1), (1, 1)],
    ),
    "another model than one's own": Case(
        lambda: checks.check_models(CONFIG, ADVERTISED, roster(models=(NEWER,))),
        "roster-models",
        (OWN_MODEL.version, OWN_MODEL.digest.hex()),
        [(NEWER.version, NEWER.digest.hex())],
    ),
    "a cohort too small": Case(
        lambda: checks.check_size(rules(size_min=6, size_max=9), ROSTER),
        "cohort-size",
        "6 to 9",
        CLIENTS,
    ),
    "a cohort too large": Case(
        lambda: checks.check_size(rules(size_min=2, size_max=4), ROSTER),
        "cohort-size",
        "3 to 4",
        CLIENTS,
    ),
    "an entry of a wrong size": Case(
        lambda: checks.check_order(roster(entries=entries({1: {"advert_digest": b"d"}}))),
        "roster-malformed",
    ),
    "a wrong order": Case(
        lambda: checks.check_order(roster(entries=ROSTER.entries[::-1])), "roster-order"
    ),
    "a neighbour missing": Case(
        lambda: checks.check_neighbours(
            CONFIG, roster(neighbour_adverts=ROSTER.neighbour_adverts[1:]), GRAPH, EPOCH_S
        ),
        "roster-neighbours",
        OTHERS,
        OTHERS[1:],
    ),
    "another advert": Case(
        lambda: checks.check_neighbours(
            CONFIG,
            roster(entries=entries({FIRST: {"advert_digest": b"d" * 32}})),
            GRAPH,
            EPOCH_S,
        ),
        "roster-advert",
        (b"d" * 32).hex(),
        advert_digest(FIRST_ADVERT).hex(),
    ),
    "an advert of another": Case(
        lambda: checks.check_neighbours(
            CONFIG, roster(entries=entries({FIRST: {"identity_key": b"k" * 32}})), GRAPH, EPOCH_S
        ),
        "roster-advert",
        (b"k" * 32).hex(),
        identity(FIRST).hex(),
        identity(FIRST),
    ),
    "a neighbour of another model": Case(
        lambda: checks.check_neighbours(
            CONFIG,
            roster(models=(OWN_MODEL, NEWER), entries=entries({FIRST: {"model": 1}})),
            GRAPH,
            EPOCH_S,
        ),
        "roster-models",
        (NEWER.version, NEWER.digest.hex()),
        (FIRST_MODEL.model_version, FIRST_MODEL.model_digest.hex()),
        identity(FIRST),
    ),
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


def test_what_is_demanded_can_be_met() -> None:
    """Each demand passes at its very bound."""
    checks.check_addressed(CONFIG, ADVERTISED, ROSTER)
    checks.check_task(CONFIG, ADVERTISED, roster(attempt=(1 << 32) - 1), EPOCH_S)
    checks.check_task(CONFIG, ADVERTISED, ROSTER, ADVERTISED.expires_at + 60)
    assert checks.check_models(CONFIG, ADVERTISED, ROSTER) == 0
    checks.check_size(rules(size_min=CLIENTS, size_max=CLIENTS), ROSTER)
    checks.check_masking_set(CONFIG, SESSION, EVERYONE, OTHERS)
    checks.check_survivor_set(removable(2), SESSION, EVERYONE, tuple(sorted((INDEX, *OTHERS[:2]))))
    confirm(*(confirmation(index) for index in OTHERS[:3]))


def test_staleness_counts_versions_behind_the_newest() -> None:
    """Five devices, three behind one's own model, and a floor of two."""
    mine = {INDEX, *OTHERS[:2]}
    shown = roster(
        models=(OWN_MODEL, NEWER),
        entries=entries({place: {"model": 1} for place in EVERYONE if place not in mine}),
    )
    config = rules(versions_back=1, survivors_min=2)
    assert checks.check_models(config, ADVERTISED, shown) == 1


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
    assert effects == (state,)
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
