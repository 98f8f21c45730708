"""What a device demands of a roster: the reason of a refusal, both values, who is to blame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from secagg import client, messages
from secagg.client import checks
from secagg.context import (
    advert_digest,
)
from secagg.errors import RemoteProtocolError
from secagg.keys import signing_key
from secagg.limits import CLOCK_SKEW_S
from secagg.messages import AdmittedModel, Roster
from secagg.simulation import EPOCH_S, make_task
from tests.kits.protocol_run import Run, recorded_run, secrets_in
from tests.kits.said import Case, refused
from tests.kits.shown import (
    ADVERTISED,
    CLIENTS,
    CONFIG,
    CTX,
    EVERYONE,
    FIRST,
    FIRST_ADVERT,
    FIRST_MODEL,
    GRAPH,
    INDEX,
    NEWER,
    OTHERS,
    OWN_MODEL,
    ROSTER,
    SESSION,
    SHORT,
    certificates,
    entries,
    identity,
    roster,
    rules,
)

_replace = msgspec.structs.replace


def roster_of(run: Run) -> Roster:
    event = run.client_events["Roster"]
    assert isinstance(event, client.Received)
    return messages.peek(event.message, Roster)[0]


def show(
    run: Run, roster: Roster, *, config: client.ClientConfig | None = None, now_s: float = EPOCH_S
) -> client.State:
    signed = run.sign(roster, ctx=b"")
    state, effects = client.step(
        config or run.device.config,
        run.client_states["advertised"],
        client.Received(signed, now_s),
        run.tools(),
    )
    if isinstance(state, client.Failed):
        *said, failed = effects
        assert failed == state
        assert secrets_in(state) == []
        for sent in said:
            assert_says_why(run, roster, state, sent)
    return state


def assert_says_why(run: Run, roster: Roster, state: client.Failed, sent: client.Effect) -> None:
    """The device signs, in the context of the roster that it was shown, why it refuses it."""
    assert isinstance(sent, client.Send)
    claimed, _ = messages.peek(sent.message, messages.Refusal)
    own = run.device.config.certificate.identity_key
    refusal, _ = messages.verify(sent.message, claimed.ctx, messages.Refusal, signer=own)
    assert (refusal.index, refusal.reason) == (roster.index, state.reason)
    if refusal.entry >= 0:
        assert roster.entries[refusal.entry].identity_key == state.culprit
    if roster == roster_of(run):
        assert refusal.ctx == run.aggregator.state.ctx


def test_the_genuine_roster_is_accepted() -> None:
    run = recorded_run()
    assert isinstance(show(run, roster_of(run)), client.Shared)


NOT_FOR_THIS_EXCHANGE: dict[str, Callable[[Roster], Roster]] = {
    "roster-index": lambda roster: _replace(roster, index=CLIENTS),
    "roster-not-mine": lambda roster: _replace(roster, index=(roster.index + 1) % CLIENTS),
}


@pytest.mark.parametrize("reason", NOT_FOR_THIS_EXCHANGE)
def test_a_roster_that_does_not_list_ones_advert_changes_nothing(reason: str) -> None:
    run = recorded_run()
    with pytest.raises(RemoteProtocolError, match=reason):
        show(run, NOT_FOR_THIS_EXCHANGE[reason](roster_of(run)))


def test_ones_own_entry_must_be_ones_own_advert() -> None:
    run = recorded_run()
    roster = roster_of(run)
    entries = list(roster.entries)
    entries[roster.index] = _replace(entries[roster.index], advert_digest=bytes(32))
    with pytest.raises(RemoteProtocolError, match="roster-not-mine"):
        show(run, _replace(roster, entries=tuple(entries)))


def with_entry(place: int, **changes: bytes) -> Callable[[Roster], Roster]:
    """Change the entry ``place`` steps after one's own."""

    def change(roster: Roster) -> Roster:
        entries = list(roster.entries)
        index = (roster.index + place) % CLIENTS
        entries[index] = _replace(entries[index], **changes)
        return _replace(roster, entries=tuple(entries))

    return change


def without_last(roster: Roster) -> Roster:
    others = [i for i in range(CLIENTS) if i != roster.index]
    gone = others[-1]
    entries = tuple(entry for i, entry in enumerate(roster.entries) if i != gone)
    adverts = tuple((i - (i > gone), advert) for i, advert in roster.neighbour_adverts if i != gone)
    index = roster.index - (roster.index > gone)
    return _replace(roster, entries=entries, neighbour_adverts=adverts, index=index)


def swapped(roster: Roster) -> Roster:
    """Two others change places, digests and adverts alike."""
    first, second = [i for i in range(CLIENTS) if i != roster.index][:2]
    entries = list(roster.entries)
    entries[first], entries[second] = entries[second], entries[first]
    adverts = dict(roster.neighbour_adverts)
    adverts[first], adverts[second] = adverts[second], adverts[first]
    return _replace(
        roster, entries=tuple(entries), neighbour_adverts=tuple(sorted(adverts.items()))
    )


def doubled(roster: Roster) -> Roster:
    """One neighbour takes another's place too."""
    first, second = [i for i in range(CLIENTS) if i != roster.index][:2]
    entries = list(roster.entries)
    entries[second] = entries[first]
    adverts = dict(roster.neighbour_adverts)
    adverts[second] = adverts[first]
    return _replace(
        roster, entries=tuple(entries), neighbour_adverts=tuple(sorted(adverts.items()))
    )


ENDS_THE_EXCHANGE: dict[str, tuple[str, Callable[[Roster], Roster]]] = {
    "another task": ("roster-manifest", lambda r: _replace(r, task="other")),
    "another manifest": ("roster-manifest", lambda r: _replace(r, manifest_digest=bytes(32))),
    "a short cohort name": ("roster-malformed", lambda r: _replace(r, cohort=b"c")),
    "another model": (
        "roster-models",
        lambda r: _replace(r, models=(AdmittedModel(0, bytes(32)),)),
    ),
    "no model": ("roster-models", lambda r: _replace(r, models=())),
    "a model twice": ("roster-models", lambda r: _replace(r, models=r.models * 2)),
    "too few devices": ("cohort-size", without_last),
    "wrong order": ("roster-order", swapped),
    "a device twice": ("roster-order", doubled),
    "a short key": ("roster-malformed", with_entry(1, identity_key=b"short")),
    "a short digest": ("roster-malformed", with_entry(1, advert_digest=b"short")),
    "another advert": ("roster-advert", with_entry(1, advert_digest=b"d" * 32)),
    "a missing neighbour": (
        "roster-neighbours",
        lambda r: _replace(r, neighbour_adverts=r.neighbour_adverts[1:]),
    ),
    "a neighbour twice": (
        "roster-neighbours",
        lambda r: _replace(
            r, neighbour_adverts=(r.neighbour_adverts[0], *r.neighbour_adverts[:-1])
        ),
    ),
}


@pytest.mark.parametrize("case", ENDS_THE_EXCHANGE)
def test_a_roster_against_the_rules_ends_the_exchange(case: str) -> None:
    reason, change = ENDS_THE_EXCHANGE[case]
    run = recorded_run()
    state = show(run, change(roster_of(run)))
    assert isinstance(state, client.Failed)
    assert state.reason == reason


def test_a_roster_after_the_advert_expired_ends_the_exchange() -> None:
    run = recorded_run()
    state = show(run, roster_of(run), now_s=EPOCH_S + 10_000)
    assert isinstance(state, client.Failed)
    assert state.reason == "advert-expired"


@pytest.mark.parametrize("known", [frozenset(), frozenset({b"p" * 32})])
def test_the_devices_own_partners_decide(known: frozenset[bytes]) -> None:
    run = recorded_run()
    config = replace(run.device.config, partner_keys=known)
    state = show(run, roster_of(run), config=config)
    assert isinstance(state, client.Failed)
    assert state.reason == "partner-unknown"
    assert state.culprit is not None


@pytest.mark.parametrize("minimum", [CLIENTS + 1, 1000])
def test_the_devices_own_minimum_decides(minimum: int) -> None:
    run = recorded_run()
    config = replace(run.device.config, survivors_min=minimum)
    state = show(run, roster_of(run), config=config)
    assert isinstance(state, client.Failed)
    assert state.reason == "cohort-size"


def test_a_roster_signed_by_another_key_changes_nothing() -> None:
    run = recorded_run()
    other = make_task(CLIENTS, 5, seed=9)
    signed = messages.sign(roster_of(run), b"", signing_key(other.server.task_key))
    with pytest.raises(RemoteProtocolError, match="signer-unexpected"):
        client.step(
            run.device.config,
            run.client_states["advertised"],
            client.Received(signed, EPOCH_S),
            run.tools(),
        )


# -- reason, both values, who is to blame ----------------------------------------------------------


PARTNER = CONFIG.certificate.partner_key
UNKNOWN = b"\xff" * 32  # sorts behind every other
EXPIRED = CONFIG.certificate.not_after


def models_case(models: tuple[AdmittedModel, ...], **config: Any) -> Case:
    return Case(
        lambda: checks.check_models(rules(**config), ADVERTISED, roster(models=models)),
        "roster-models",
        f"distinct models of {config.get('versions_back', 0) + 1} consecutive versions at most",
        [(model.version, model.digest.hex()) for model in models],
    )


def check_neighbours(shown: Roster) -> None:
    checks.check_neighbours(CONFIG, shown, GRAPH, certificates(shown), EPOCH_S)


def check_certificates(*, now_s: float = EPOCH_S, **changes: Any) -> None:
    checks.check_certificates(CONFIG, roster(**changes), now_s)


REFUSED: dict[str, Case] = {
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
        (OWN_MODEL, AdmittedModel(NEWER.version, OWN_MODEL.digest)), versions_back=2
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
    "partners out of order": Case(
        lambda: check_certificates(partners=(PARTNER, b"\x00" * 32)), "roster-malformed"
    ),
    "an entry of no partner": Case(
        lambda: check_certificates(entries=entries({FIRST: {"partner": 1}})),
        "roster-malformed",
        "below 1",
        1,
        culprit=identity(FIRST),
    ),
    "an entry of an earlier version": Case(
        lambda: check_certificates(partners=()),
        "roster-malformed",
        "below 0",
        0,
        culprit=identity(0),
    ),
    "an entry of an unknown partner": Case(
        lambda: check_certificates(
            partners=tuple(sorted((PARTNER, UNKNOWN))),
            entries=entries({place: {"partner": int(place == FIRST)} for place in EVERYONE}),
        ),
        "partner-unknown",
        [PARTNER.hex()],
        UNKNOWN.hex(),
        culprit=identity(FIRST),
    ),
    "an entry with another's certificate": Case(
        lambda: check_certificates(
            entries=entries(
                {FIRST: {"certificate_signature": ROSTER.entries[INDEX].certificate_signature}}
            )
        ),
        "certificate-invalid",
        culprit=identity(FIRST),
    ),
    "an entry without a certificate": Case(
        lambda: check_certificates(entries=entries({FIRST: {"certificate_signature": b""}})),
        "certificate-invalid",
        culprit=identity(FIRST),
    ),
    "an entry with a later expiry": Case(
        lambda: check_certificates(
            entries=entries({FIRST: {"not_after": ROSTER.entries[FIRST].not_after + 1}})
        ),
        "certificate-invalid",
        culprit=identity(FIRST),
    ),
    "an entry that has expired": Case(
        lambda: check_certificates(now_s=EXPIRED + CLOCK_SKEW_S + 1),
        "certificate-expired",
        f"valid at {EXPIRED + CLOCK_SKEW_S + 1}",
        EXPIRED,
        culprit=identity(0),
    ),
    "a neighbour missing": Case(
        lambda: check_neighbours(roster(neighbour_adverts=ROSTER.neighbour_adverts[1:])),
        "roster-neighbours",
        OTHERS,
        OTHERS[1:],
    ),
    "another advert": Case(
        lambda: check_neighbours(
            roster(entries=entries({FIRST: {"advert_digest": b"d" * 32}})),
        ),
        "roster-advert",
        (b"d" * 32).hex(),
        advert_digest(FIRST_ADVERT).hex(),
    ),
    "an advert of another": Case(
        lambda: check_neighbours(roster(entries=entries({FIRST: {"identity_key": b"k" * 32}}))),
        "roster-advert",
        (b"k" * 32).hex(),
        identity(FIRST).hex(),
        culprit=identity(FIRST),
    ),
    "a neighbour of another model": Case(
        lambda: check_neighbours(
            roster(models=(OWN_MODEL, NEWER), entries=entries({FIRST: {"model": 1}})),
        ),
        "roster-models",
        (NEWER.version, NEWER.digest.hex()),
        (FIRST_MODEL.model_version, FIRST_MODEL.model_digest.hex()),
        culprit=identity(FIRST),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_demand_that_is_not_met(name: str) -> None:
    refused(REFUSED[name])


def test_the_genuine_roster_passes_and_so_do_its_bounds() -> None:
    checks.check_addressed(CONFIG, ADVERTISED, ROSTER)
    checks.check_task(CONFIG, ADVERTISED, roster(attempt=(1 << 32) - 1), EPOCH_S)
    checks.check_task(CONFIG, ADVERTISED, ROSTER, ADVERTISED.expires_at + CLOCK_SKEW_S)
    assert checks.check_models(CONFIG, ADVERTISED, ROSTER) == 0
    assert checks.check_certificates(CONFIG, ROSTER, EXPIRED + CLOCK_SKEW_S) == certificates()
    checks.check_size(rules(size_min=CLIENTS, size_max=CLIENTS), ROSTER)


def test_staleness_counts_versions_behind_the_newest() -> None:
    """Five devices, three behind one's own model, and a floor of two."""
    mine = {INDEX, *OTHERS[:2]}
    shown = roster(
        models=(OWN_MODEL, NEWER),
        entries=entries({place: {"model": 1} for place in EVERYONE if place not in mine}),
    )
    config = rules(versions_back=1, survivors_min=2)
    assert checks.check_models(config, ADVERTISED, shown) == 1
