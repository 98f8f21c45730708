"""What the aggregator says when it refuses: reason, both values, the device that is to blame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
import pytest

from secagg import messages, server
from secagg.adverts import check_advert
from secagg.context import masking_set_digest, survivor_set_digest
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.keys import identity_public_key, signing_key
from secagg.messages import (
    Advert,
    Complaint,
    Confirmation,
    Deal,
    Deals,
    MaskedInput,
    Ready,
    Refusal,
    RevealedShare,
    Unmask,
)
from secagg.secret import Secret
from secagg.server import collect, unmask
from secagg.simulation import EPOCH_S
from tests.kits.protocol_run import CLIENTS, make_recorded, recorded_run
from tests.kits.said import said

_replace = msgspec.structs.replace
RUN = recorded_run()
CONFIG = RUN.task.server
STATES = RUN.server_states
FACTS = STATES["sharing"].facts
INDEX, CTX = RUN.index, FACTS.ctx
SELF = FACTS.identity(INDEX)
EVERYONE = tuple(range(CLIENTS))
OTHERS = tuple(index for index in EVERYONE if index != INDEX)
FIRST = OTHERS[0]


def genuine(kind: type[Any]) -> Any:
    return messages.peek(RUN.server_events[kind.__name__].message, kind)[0]


DEALS, HEADER, UNMASK = genuine(Deals), genuine(MaskedInput), genuine(Unmask)
FIRST_DEAL = messages.peek(DEALS.deals[0], Deal)[0]
INBOX = messages.peek(RUN.client_events["Inbox"].message, messages.Inbox)[0]
DELIVERED = INBOX.deals[0]  # by the device FIRST
NAME = b"n" * 32  # a pseudonym
MASKING = masking_set_digest(CTX, EVERYONE)
SURVIVORS = survivor_set_digest(CTX, MASKING, EVERYONE)
SIGNED_ADVERT = RUN.device.advert
ADVERT = messages.peek(SIGNED_ADVERT, Advert)[0]
STRANGER = Secret(b"s" * 32)
DUE = [(owner, 0) for owner in OTHERS]  # every neighbour survived: shares of their self seeds


def take_deals(**changes: Any) -> None:
    collect.take_deals(STATES["sharing"], INDEX, _replace(DEALS, **changes))


def with_first(**changes: Any) -> tuple[bytes, ...]:
    return (RUN.sign_as_device(_replace(FIRST_DEAL, **changes)), *DEALS.deals[1:])


def take_ready(message: Ready | Complaint, **changes: Any) -> server.Checking:
    return collect.take_ready(replace(STATES["checking"], **changes), INDEX, message)


def complaint(*accused: int, evidence: tuple[bytes, ...] = (DELIVERED,)) -> Complaint:
    return Complaint(CTX, INDEX, accused, evidence, NAME)


def take_header(index: int = INDEX, masking_set: tuple[int, ...] = EVERYONE, **changes: Any) -> Any:
    state = replace(STATES["masking"], masking_set=masking_set)
    return collect.take_masked_input(CONFIG, state, index, _replace(HEADER, **changes))


def take_confirmation(survivors: tuple[int, ...] = EVERYONE, digest: bytes = SURVIVORS) -> None:
    state = replace(STATES["confirming"], survivors=survivors)
    collect.take_confirmation(state, INDEX, Confirmation(CTX, INDEX, MASKING, digest), b"")


def take_unmask(shares: tuple[RevealedShare, ...]) -> None:
    unmask.take_unmask(STATES["unmasking"], INDEX, Unmask(CTX, INDEX, shares))


def refuse_because_of(entry: int) -> None:
    collect.take_refusal(STATES["sharing"], INDEX, Refusal(CTX, INDEX, "partner-unknown", entry))


def receive(phase: str, message: messages.Message, index: int = INDEX) -> None:
    event = server.Received(index, RUN.sign_as_device(message), EPOCH_S)
    server.step(CONFIG, replace(STATES[phase], accepted={}), event)


def signed_by_first(message: messages.Message) -> bytes:
    owner = RUN.task.devices[RUN.aggregator.numbers[FIRST]]
    return messages.sign(message, CTX, signing_key(owner.identity))


def advert(key: Secret | None = None, now_s: float = EPOCH_S, **changes: Any) -> None:
    signed = messages.sign(
        _replace(ADVERT, **changes), b"", signing_key(key or RUN.device.config.identity)
    )
    manifest = CONFIG.manifest
    check_advert(signed, manifest, CONFIG.manifest_digest, manifest.partner_keys, now_s)


def open_cohort(adverts: list[bytes], **rules: Any) -> None:
    manifest = CONFIG.manifest
    changed = _replace(manifest, cohort=_replace(manifest.cohort, **rules))
    server.open_cohort(
        replace(CONFIG, manifest=changed),
        cohort=bytes(32),
        attempt=0,
        adverts=adverts,
        now_s=EPOCH_S,
    )


ADVERTS = [device.advert for device in make_recorded(RUN.task)]


def of_another_version(signed: bytes) -> bytes:
    advert, _ = messages.peek(signed, Advert)
    (owner,) = (d for d in RUN.task.devices if d.certificate == advert.certificate)
    newer = _replace(advert, model_version=advert.model_version + 1)
    return messages.sign(newer, b"", signing_key(owner.identity))


SEAL, SHARES = len(FIRST_DEAL.sealed_pair_seed), len(FIRST_DEAL.sealed_shares)
WANTED_SIZES = (1_216, 1_216, 32, 32)


def plan_from_shares(value: int, **facts: Any) -> None:
    """Open from shares of a constant polynomial, as dealers who lie could deal them."""
    share = Secret(value.to_bytes(33, "little"))
    shares = {
        holder: {(owner, 0): share for owner in EVERYONE if owner != holder} for holder in EVERYONE
    }
    state = STATES["unmasking"]
    unmask.make_plan(CONFIG, replace(state, shares=shares, facts=replace(state.facts, **facts)))


class Case(NamedTuple):
    call: Callable[[], Any]
    reason: str
    expected: object = None
    found: object = None
    culprit: bytes | None = SELF


CASES: dict[str, Case] = {
    "a deal missing": Case(
        lambda: take_deals(deals=DEALS.deals[1:]), "deals-count", CLIENTS - 1, CLIENTS - 2
    ),
    "a commitment too many": Case(
        lambda: take_deals(noise_commitments=(b"c",)), "deals-commitments", [], [1]
    ),
    "a deal for another": Case(
        lambda: take_deals(deals=with_first(recipient=OTHERS[1])),
        "deal-address",
        (INDEX, FIRST),
        (INDEX, OTHERS[1]),
    ),
    "a deal of another": Case(
        lambda: take_deals(deals=with_first(sender=OTHERS[1])),
        "deal-address",
        (INDEX, FIRST),
        (OTHERS[1], FIRST),
    ),
    "a deal of a wrong size": Case(
        lambda: take_deals(deals=with_first(share_hashes=(bytes(32), b"h"))),
        "deal-size",
        (SEAL, SHARES, 32, 32),
        (SEAL, SHARES, 32, 1),
    ),
    "a check of one that did not deal": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME), dealers=OTHERS), "not-a-dealer"
    ),
    "a second check": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME), answered=frozenset({INDEX})),
        "message-changed",
        culprit=None,  # the machine adds its sender
    ),
    "a complaint about nobody": Case(
        lambda: take_ready(complaint(evidence=())), "complaint-malformed"
    ),
    "a complaint out of order": Case(
        lambda: take_ready(complaint(OTHERS[1], FIRST, evidence=(b"", b""))), "complaint-malformed"
    ),
    "a complaint without evidence": Case(
        lambda: take_ready(complaint(FIRST, evidence=())), "complaint-malformed"
    ),
    "evidence against another": Case(
        lambda: take_ready(complaint(OTHERS[1])), "complaint-evidence"
    ),
    "evidence against oneself": Case(lambda: take_ready(complaint(INDEX)), "complaint-evidence"),
    "a vector of one outside S": Case(
        lambda: take_header(masking_set=OTHERS), "not-in-masking-set"
    ),
    "a vector of a wrong size": Case(
        lambda: take_header(size_bytes=1),
        "masked-input",
        (MASKING.hex(), HEADER.size_bytes),
        (MASKING.hex(), 1),
    ),
    "a vector for another S": Case(
        lambda: take_header(masking_set_digest=b"m"),
        "masked-input",
        (MASKING.hex(), HEADER.size_bytes),
        (b"m".hex(), HEADER.size_bytes),
    ),
    "a short digest": Case(lambda: take_header(vector_digest=b"d"), "masked-input"),
    "a confirmation of one outside U": Case(
        lambda: take_confirmation(survivors=OTHERS),
        "confirmation",
        survivor_set_digest(CTX, MASKING, OTHERS).hex(),
        SURVIVORS.hex(),
    ),
    "a confirmation of another U": Case(
        lambda: take_confirmation(digest=b"u" * 32),
        "confirmation",
        SURVIVORS.hex(),
        (b"u" * 32).hex(),
    ),
    "a share missing": Case(lambda: take_unmask(UNMASK.shares[1:]), "unmask-shares", DUE, DUE[1:]),
    "a share of the other kind": Case(
        lambda: take_unmask((RevealedShare(FIRST, 1, UNMASK.shares[0].share), *UNMASK.shares[1:])),
        "unmask-shares",
        DUE,
        [(FIRST, 1), *DUE[1:]],
    ),
    "shares that open to no secret": Case(
        lambda: plan_from_shares(1 << 256), "dealer-self-seed", culprit=FACTS.identity(0)
    ),
    "shares that open to another seed": Case(
        lambda: plan_from_shares(1), "dealer-self-seed", culprit=FACTS.identity(0)
    ),
    "a message for another exchange": Case(
        lambda: receive("checking", Ready(b"c", INDEX, NAME)), "message-context", INDEX, INDEX
    ),
    "a message from another": Case(
        lambda: receive("checking", Ready(CTX, FIRST, NAME)), "message-context", INDEX, FIRST
    ),
    "a message signed by another": Case(
        lambda: server.step(
            CONFIG,
            replace(STATES["checking"], accepted={}),
            server.Received(INDEX, signed_by_first(Ready(CTX, INDEX, NAME)), EPOCH_S),
        ),
        "signer-unexpected",
        SELF.hex(),
        FACTS.identity(FIRST).hex(),
        None,  # whoever carried it need not have made it
    ),
    "a message too early": Case(
        lambda: receive("sharing", Ready(CTX, INDEX, NAME)),
        "message-not-due",
        ["Cancel", "Deals", "Exclude", "Refusal", "Tick"],
        "Ready",
    ),
    "a check without a pseudonym": Case(
        lambda: take_ready(Ready(CTX, INDEX)), "pseudonym", 32, 0, SELF
    ),
    "a pseudonym of 33 bytes": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME + b"n")), "pseudonym", 32, 33, SELF
    ),
    "another's pseudonym": Case(
        lambda: take_ready(Ready(CTX, INDEX, NAME), pseudonyms={FIRST: NAME}),
        "pseudonym",
        32,
        32,
        SELF,
    ),
    "a complaint without a pseudonym": Case(
        lambda: take_ready(Complaint(CTX, INDEX, (FIRST,), (DELIVERED,))), "pseudonym", 32, 0, SELF
    ),
    "a refusal of a roster that was accepted": Case(
        lambda: collect.take_refusal(
            replace(STATES["sharing"], dealt={INDEX: None}), INDEX, Refusal(CTX, INDEX, "r", -1)
        ),
        "refusal-late",
        culprit=SELF,
    ),
    "a refusal because of oneself": Case(
        lambda: refuse_because_of(INDEX),
        "refusal-entry",
        f"another than {INDEX}, below {CLIENTS}",
        INDEX,
    ),
    "a refusal because of nobody": Case(
        lambda: refuse_because_of(CLIENTS),
        "refusal-entry",
        f"another than {INDEX}, below {CLIENTS}",
        CLIENTS,
    ),
    "a refusal because of minus two": Case(
        lambda: refuse_because_of(-2),
        "refusal-entry",
        f"another than {INDEX}, below {CLIENTS}",
        -2,
    ),
    "deals after a refusal": Case(
        lambda: collect.take_deals(
            replace(STATES["sharing"], gone=frozenset({INDEX})), INDEX, DEALS
        ),
        "roster-refused",
        culprit=SELF,
    ),
    "a check after a check": Case(
        lambda: server.step(
            CONFIG,
            replace(STATES["checking"], answered=frozenset({INDEX})),
            RUN.server_events["Ready"],
        ),
        "message-changed",
    ),
    "an advert signed by another": Case(
        lambda: advert(STRANGER),
        "advert-signer",
        SELF.hex(),
        identity_public_key(STRANGER).hex(),
        identity_public_key(STRANGER),
    ),
    "an advert for another task": Case(
        lambda: advert(task="other"),
        "advert-manifest",
        (CONFIG.manifest.task, CONFIG.manifest_digest.hex()),
        ("other", CONFIG.manifest_digest.hex()),
    ),
    "an expired advert": Case(
        lambda: advert(now_s=ADVERT.expires_at + 300.5),
        "advert-expired",
        f"at least {ADVERT.expires_at + 300.5:.0f}",
        ADVERT.expires_at,
    ),
    "an advert with a short nonce": Case(
        lambda: advert(nonce=b"n"), "advert-malformed", WANTED_SIZES, (*WANTED_SIZES[:3], 1)
    ),
    "an advert with a short model": Case(
        lambda: advert(model_digest=b"m"), "advert-malformed", WANTED_SIZES, WANTED_SIZES
    ),
    "an advert with one key twice": Case(
        lambda: advert(channel_key=ADVERT.mask_key), "advert-malformed"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_device_that_breaks_the_rules_is_told_how_and_named(name: str) -> None:
    case = CASES[name]
    with pytest.raises(RemoteProtocolError) as caught:
        case.call()
    assert said(caught.value) == (case.reason, case.expected, case.found)
    assert caught.value.culprit == case.culprit


VERSIONS = [(1, CLIENTS - 1), (2, 1)]
MISUSE: dict[str, Case] = {
    "an index beyond the roster": Case(
        lambda: receive("sharing", DEALS, CLIENTS), "index-out-of-roster", None, CLIENTS
    ),
    "a vector that was not announced": Case(
        lambda: collect.take_vector(
            replace(STATES["masking"], announced=frozenset({3, 1}), added=frozenset({1})), 0
        ),
        "vector-not-due",
        [3],
        0,
    ),
    "a vector added twice": Case(
        lambda: collect.take_vector(
            replace(STATES["masking"], announced=frozenset({3, 1}), added=frozenset({1})), 1
        ),
        "vector-not-due",
        [3],
        1,
    ),
    "too few adverts": Case(
        lambda: open_cohort(ADVERTS[1:]), "cohort-size", (CLIENTS, CLIENTS), CLIENTS - 1
    ),
    "a device twice": Case(
        lambda: open_cohort([*ADVERTS[1:], ADVERTS[1]], size_min=2), "cohort-twice"
    ),
    "two versions of the model": Case(
        lambda: open_cohort([of_another_version(ADVERTS[0]), *ADVERTS[1:]]),
        "cohort-models",
        (1, 3),
        VERSIONS,
    ),
    "a version with too few behind it": Case(
        lambda: open_cohort([of_another_version(ADVERTS[0]), *ADVERTS[1:]], versions_back=1),
        "cohort-models",
        (2, 3),
        VERSIONS,
    ),
}


@pytest.mark.parametrize("name", MISUSE)
def test_a_driver_hears_what_it_did_wrong(name: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        MISUSE[name].call()
    reason, expected, found = said(caught.value)
    found = sorted(found) if reason == "cohort-models" else found
    assert (reason, expected, found) == MISUSE[name][1:4]


def test_a_driver_event_that_is_not_due_says_what_is() -> None:
    with pytest.raises(SecaggError, match="SumOpened is not due") as caught:
        server.step(CONFIG, STATES["masking"], server.SumOpened(EPOCH_S))
    due = ["Cancel", "MaskedInput", "Tick", "VectorAdded"]
    assert said(caught.value) == ("event-not-due", due, "SumOpened")
