"""What a device says of a roster that it refuses: reason, both values, who is to blame."""

from __future__ import annotations

from typing import Any

import pytest

from secagg import messages
from secagg.client import checks
from secagg.context import (
    advert_digest,
)
from secagg.errors import RemoteProtocolError
from secagg.limits import CLOCK_SKEW_S
from secagg.messages import AdmittedModel, Roster
from secagg.simulation import EPOCH_S
from tests.kits.said import said
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
    Case,
    certificates,
    entries,
    identity,
    roster,
    rules,
)

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
        identity(FIRST),
    ),
    "an entry of an earlier version": Case(
        lambda: check_certificates(partners=()), "roster-malformed", "below 0", 0, identity(0)
    ),
    "an entry of an unknown partner": Case(
        lambda: check_certificates(
            partners=tuple(sorted((PARTNER, UNKNOWN))),
            entries=entries({place: {"partner": int(place == FIRST)} for place in EVERYONE}),
        ),
        "partner-unknown",
        [PARTNER.hex()],
        UNKNOWN.hex(),
        identity(FIRST),
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
        identity(0),
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
        identity(FIRST),
    ),
    "a neighbour of another model": Case(
        lambda: check_neighbours(
            roster(models=(OWN_MODEL, NEWER), entries=entries({FIRST: {"model": 1}})),
        ),
        "roster-models",
        (NEWER.version, NEWER.digest.hex()),
        (FIRST_MODEL.model_version, FIRST_MODEL.model_digest.hex()),
        identity(FIRST),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_demand_that_is_not_met(name: str) -> None:
    case = CASES[name]
    with pytest.raises(RemoteProtocolError) as caught:
        case.call()
    assert said(caught.value) == (case.reason, case.expected, case.found)
    assert caught.value.culprit == case.culprit


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
