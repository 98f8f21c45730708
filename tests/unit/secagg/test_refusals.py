"""Every refusal of the primitives speaks: a stable reason, a sentence, both values, who did it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from secagg import keys, masks, messages, ring, sealing, sharing
from secagg.errors import ConfigurationError, LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.graph import harary
from secagg.messages import Abort, Ready, Receipt
from secagg.opening import OpeningPlan, check_sum, open_slice
from secagg.secret import Secret
from secagg.simulation import make_task
from tests.kits.said import said

SHORT, SEED = Secret(b"short"), Secret(bytes(32))
PARTNER, DEVICE = Secret(b"p" * 32), Secret(b"d" * 32)
PARTNER_KEY, DEVICE_KEY = keys.identity_public_key(PARTNER), keys.identity_public_key(DEVICE)
CERTIFICATE = keys.issue_certificate(PARTNER, DEVICE_KEY, 1_000)
FORGED = keys.Certificate(DEVICE_KEY, PARTNER_KEY, 1_000, bytes(64))
KEM_SECRET = Secret(b"k" * 32)
FRAME = messages.encode(Ready(b"c", 1))
SIGNED = messages.sign(Ready(b"c", 1), b"c", keys.signing_key(DEVICE))
READY_MAX = messages.KINDS[Ready][1]


class Case(NamedTuple):
    call: Callable[[], Any]
    error: type[SecaggError]
    reason: str
    expected: object = None
    found: object = None
    culprit: bytes | None = None


def wrong_sum() -> None:
    manifest = make_task(3, 10, slice_length=4).manifest
    total = np.zeros(13, "<u4")
    total[::5] = 3, 2, 7
    check_sum(manifest, total, 3)


LOCAL, REMOTE, CONFIGURATION = LocalProtocolError, RemoteProtocolError, ConfigurationError
CASES = {
    "a ring too small": Case(lambda: ring.lane_dtype(7), LOCAL, "ring-bits", "8..62", 7),
    "no data": Case(
        lambda: ring.payload_length(0, 4), LOCAL, "vector-length", f"1..{1 << 28}", (0, 4)
    ),
    "data of another type": Case(
        lambda: ring.with_checks(np.zeros(3, "<i4"), 24, 2),  # type: ignore[arg-type]
        LOCAL,
        "vector-type",
        "int64[d]",
        "<i4",
    ),
    "vectors of other shape": Case(
        lambda: ring.add_into(np.zeros(4, "<u4"), np.zeros(3, "<u2"), 24),
        LOCAL,
        "vector-shape",
        ((4,), "<u4"),
        ((3,), "<u2"),
    ),
    "lanes of another ring": Case(
        lambda: ring.pack(np.zeros(4, "<u8"), 24), LOCAL, "vector-type", "<u4", "<u8"
    ),
    "a packed vector too short": Case(
        lambda: ring.unpack(bytes(5), 2, 24), REMOTE, "vector-size", 6, 5
    ),
    "padding": Case(lambda: ring.unpack(b"\xff\xff", 1, 9), REMOTE, "vector-padding"),
    "a mask's seed": Case(lambda: masks.mask_key(SHORT, b""), LOCAL, "seed-size", 32, 5),
    "a mask's offset": Case(
        lambda: masks.apply_masks(np.zeros(4, "<u4"), (), 24, -1), LOCAL, "mask-offset", None, -1
    ),
    "lanes for masks": Case(
        lambda: masks.apply_masks(np.zeros(4, "<u8"), (), 24), LOCAL, "vector-type", "<u4", "<u8"
    ),
    "lanes with gaps for masks": Case(
        lambda: masks.apply_masks(np.zeros(4, "<u4")[::2], (), 24),
        LOCAL,
        "vector-type",
        "<u4",
        "<u4",
    ),
    "a short secret": Case(
        lambda: sharing.split(SHORT, 2, [0, 1], os.urandom),
        LOCAL,
        "sharing-parameters",
        (32, 2),
        (5, 2),
    ),
    "a holder twice": Case(
        lambda: sharing.lagrange_at_zero([1, 1]), LOCAL, "sharing-parameters", None, [1, 1]
    ),
    "shares of others": Case(
        lambda: sharing.join({2: bytes(33), 1: bytes(33)}, {3: 1, 1: 1}),
        LOCAL,
        "sharing-parameters",
        [1, 3],
        [1, 2],
    ),
    "a short share": Case(
        lambda: sharing.check_share(bytes(32)), REMOTE, "share-malformed", None, 32
    ),
    "shares of no secret": Case(
        lambda: sharing.join({0: (1 << 256).to_bytes(33, "little")}, {0: 1}),
        REMOTE,
        "shares-inconsistent",
    ),
    "an odd degree": Case(
        lambda: harary.Graph(1000, 3),
        CONFIGURATION,
        "graph-degree",
        "an even degree, or 0 for the complete graph",
        3,
    ),
    "an index beyond the roster": Case(
        lambda: harary.neighbours(9, 5), LOCAL, "roster-index", "below 5", 9
    ),
    "an edge to oneself": Case(lambda: harary.sealer(3, 3), LOCAL, "roster-index", None, 3),
    "an edge that is none": Case(
        lambda: harary.Graph(5).sealer(3, 3), LOCAL, "graph-edge", None, (3, 3)
    ),
    "no roster digest": Case(
        lambda: harary.neighbours(0, 1000, 100), LOCAL, "graph-seed", "32 bytes", 0
    ),
    "a signing seed": Case(lambda: keys.signing_key(SHORT), LOCAL, "seed-size", 32, 5),
    "a hybrid seed": Case(lambda: sealing.kem_public_key(SHORT, "x"), LOCAL, "seed-size", 32, 5),
    "an identity key to certify": Case(
        lambda: keys.issue_certificate(PARTNER, b"short", 1), LOCAL, "identity-key-size", 32, 5
    ),
    "a partner that does not count": Case(
        lambda: keys.verify_certificate(CERTIFICATE, [b"b" * 32, b"a" * 32], 10),
        REMOTE,
        "partner-unknown",
        ["61" * 32, "62" * 32],
        PARTNER_KEY.hex(),
        DEVICE_KEY,
    ),
    "an expired certificate": Case(
        lambda: keys.verify_certificate(CERTIFICATE, [PARTNER_KEY], 1_300.5),
        REMOTE,
        "certificate-expired",
        "valid at 1300",
        1_000,
        DEVICE_KEY,
    ),
    "a forged certificate": Case(
        lambda: keys.verify_certificate(FORGED, [PARTNER_KEY], 10),
        REMOTE,
        "certificate-invalid",
        culprit=DEVICE_KEY,
    ),
    "a short hybrid key": Case(
        lambda: sealing.hpke_seal(b"short", b"", b""), REMOTE, "kem-key-malformed", 1_216, 5
    ),
    "a malformed hybrid key": Case(
        lambda: sealing.hpke_seal(b"\xff" * 1_216, b"", b""), REMOTE, "kem-key-malformed"
    ),
    "a seal for another": Case(
        lambda: sealing.hpke_open(
            sealing.kem_private_key(SEED, "x"),
            b"",
            sealing.hpke_seal(sealing.kem_public_key(KEM_SECRET, "x"), b"", b""),
        ),
        REMOTE,
        "seal-invalid",
    ),
    "half a frame": Case(lambda: messages.decode(b"\x01", Ready), REMOTE, "frame-truncated"),
    "a frame of another version": Case(
        lambda: messages.decode(b"\x02\x06", Ready), REMOTE, "frame-version", 1, 2
    ),
    "a frame of another kind": Case(
        lambda: messages.decode(FRAME, Receipt, Abort),
        REMOTE,
        "frame-kind",
        ["Abort", "Receipt"],
        "Ready",
    ),
    "a frame of no kind": Case(
        lambda: messages.decode(b"\x01\xff", Ready), REMOTE, "frame-kind", ["Ready"], 255
    ),
    "a frame too large": Case(
        lambda: messages.decode(FRAME + bytes(READY_MAX), Ready),
        REMOTE,
        "frame-too-large",
        READY_MAX,
        len(FRAME) + READY_MAX,
    ),
    "a signed message too large": Case(
        lambda: messages.peek(bytes(READY_MAX + 129), Ready),
        REMOTE,
        "frame-too-large",
        READY_MAX + 128,
        READY_MAX + 129,
    ),
    "a body that does not parse": Case(
        lambda: messages.decode(FRAME[:-1], Ready), REMOTE, "frame-malformed"
    ),
    "a message signed by another": Case(
        lambda: messages.verify(SIGNED, b"c", Ready, signer=PARTNER_KEY),
        REMOTE,
        "signer-unexpected",
        PARTNER_KEY.hex(),
        DEVICE_KEY.hex(),
    ),
    "a signature for another exchange, of a known signer": Case(
        lambda: messages.verify(SIGNED, b"d", Ready, signer=DEVICE_KEY),
        REMOTE,
        "signature-invalid",
        culprit=DEVICE_KEY,
    ),
    "a signature for another exchange, of whomever": Case(
        lambda: messages.verify(SIGNED, b"d", Ready), REMOTE, "signature-invalid"
    ),
    "a slice beyond the sum": Case(
        lambda: open_slice(OpeningPlan(32, 3, ()), np.zeros(3, "<u4"), 1, 4),
        LOCAL,
        "opening-slice",
        3,
        (3, 1, 4),
    ),
    "wrong check coordinates": Case(wrong_sum, REMOTE, "check-coordinates", 3, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    case = CASES[name]
    with pytest.raises(SecaggError) as caught:
        case.call()
    assert type(caught.value) is case.error
    assert said(caught.value) == (case.reason, case.expected, case.found)
    assert getattr(caught.value, "culprit", None) == case.culprit


def test_the_sum_says_how_many_check_coordinates_are_wrong() -> None:
    with pytest.raises(RemoteProtocolError, match="2 of 3 check coordinates"):
        wrong_sum()


def test_a_certificate_is_valid_until_its_last_second() -> None:
    keys.verify_certificate(CERTIFICATE, [PARTNER_KEY], 1_000)
    first = keys.issue_certificate(PARTNER, DEVICE_KEY, 0)
    keys.verify_certificate(first, [PARTNER_KEY], 0)


def test_an_empty_slice_opens_to_nothing() -> None:
    for at in (0, 3):
        open_slice(OpeningPlan(32, 3, ()), np.zeros(3, "<u4"), at, at)


def test_the_longest_vector_is_allowed() -> None:
    assert ring.payload_length(1 << 28, 1 << 16) == (1 << 28) + (1 << 12)


def test_signs_are_one_or_minus_one() -> None:
    from secagg.context import pair_sign

    assert (pair_sign(0, 1), pair_sign(1, 0)) == (1, -1)
    term = masks.MaskTerm(SEED, 1)
    assert (term.negated().sign, term.negated().negated().sign) == (-1, 1)
