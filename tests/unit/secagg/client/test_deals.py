"""What a device demands of the deals in its inbox."""

from __future__ import annotations

from typing import Any

import pytest

from secagg import sealing
from secagg.client import deals
from secagg.context import (
    CHANNEL_KEY,
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    seal_info,
)
from secagg.messages import Deal, Inbox
from tests.kits.said import Case, refused
from tests.kits.shown import (
    CTX,
    FIRST,
    INBOX,
    INDEX,
    OTHERS,
    OWN,
    RUN,
    SESSION,
    SHARED,
    identity,
)


def private_key(label: str) -> Any:
    secret = SHARED.mask_secret if label == MASK_KEY else SHARED.channel_secret
    return sealing.kem_private_key(secret, label)


def sealed_by_first(label: str, kind: bytes, contents: bytes) -> Deal:
    """A deal of the device FIRST, with these contents sealed to this device."""
    secret = SHARED.mask_secret if label == MASK_KEY else SHARED.channel_secret
    info = seal_info(CTX, identity(FIRST), OWN, kind)
    sealed = sealing.hpke_seal(sealing.kem_public_key(secret, label), info, contents)
    return Deal(CTX, FIRST, INDEX, sealed, sealed, (bytes(32), bytes(32)))


REFUSED: dict[str, Case] = {
    "an inbox out of order": Case(
        lambda: deals.decrypt_inbox(SHARED, Inbox(CTX, INBOX.deals[::-1])),
        "inbox-dealer",
        f"a neighbour above {OTHERS[-1]}",
        OTHERS[-2],
    ),
    "a deal of oneself": Case(
        lambda: deals.decrypt_inbox(
            SHARED,
            Inbox(CTX, (RUN.sign_as_device(Deal(CTX, INDEX, FIRST, b"", b"", ())),)),
        ),
        "inbox-dealer",
        "a neighbour above -1",
        INDEX,
    ),
    "a pair seed of a wrong size": Case(
        lambda: deals.decrypt_pair_seed(
            SESSION, sealed_by_first(MASK_KEY, KIND_PAIR_SEED, b"short"), private_key(MASK_KEY)
        ),
        "deal-pair-seed",
        32,
        5,
        culprit=identity(FIRST),
    ),
    "shares other than the signed hashes": Case(
        lambda: deals.decrypt_shares(
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
        culprit=OWN,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_demand_that_is_not_met(name: str) -> None:
    refused(REFUSED[name])
