"""Identities and certificates: whatever a peer sends, it verifies or it is refused."""

from __future__ import annotations

import pytest

from secagg import keys, sealing
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.limits import CLOCK_SKEW_S
from secagg.messages import Certificate
from secagg.secret import Secret
from tests.kits.said import Case, refused

PARTNER, OTHER_PARTNER, DEVICE = (Secret(bytes([number]) * 32) for number in (1, 2, 3))
PARTNER_KEY = keys.identity_public_key(PARTNER)
DEVICE_KEY = keys.identity_public_key(DEVICE)
NOW = 1_800_000_000

# -- Ed25519 -----------------------------------------------------------------------------------

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555"
        "fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da0"
        "85ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac1"
        "8ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "text", "signature"), RFC_8032, ids=["1", "2", "3"])
def test_identities_are_ed25519_of_rfc_8032(
    seed: str, public: str, text: str, signature: str
) -> None:
    secret, message = Secret(bytes.fromhex(seed)), bytes.fromhex(text)
    assert keys.identity_public_key(secret).hex() == public
    assert keys.signing_key(secret).sign(message).signature.hex() == signature
    assert keys.verify_signature(bytes.fromhex(public), message, bytes.fromhex(signature))
    assert not keys.verify_signature(
        bytes.fromhex(public), message + b"!", bytes.fromhex(signature)
    )


def test_every_bit_of_a_signature_counts() -> None:
    signature = keys.signing_key(DEVICE).sign(b"text").signature
    for bit in range(8 * len(signature)):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert not keys.verify_signature(DEVICE_KEY, b"text", bytes(changed))


def test_a_signature_has_one_form() -> None:
    """S and S + L verify under the equation; RFC 8032 admits only S below L."""
    order = 2**252 + 27742317777372353535851937790883648493
    signature = keys.signing_key(DEVICE).sign(b"text").signature
    raised = int.from_bytes(signature[32:], "little") + order
    assert not keys.verify_signature(
        DEVICE_KEY, b"text", signature[:32] + raised.to_bytes(32, "little")
    )


@pytest.mark.parametrize(
    "public",
    [b"", bytes(31), bytes(33), bytes(32), b"\x01" + bytes(31), b"\xff" * 32],
    ids=bytes.hex,
)
def test_malformed_and_low_order_identities_verify_nothing(public: bytes) -> None:
    for signature in (
        b"",
        bytes(63),
        bytes(64),
        bytes(65),
        b"\x01" + bytes(63),
        public + bytes(32),
    ):
        assert not keys.verify_signature(public, b"text", signature)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_seeds_of_another_size_are_refused(size: int) -> None:
    secret = Secret(bytes(size))
    for use in (
        keys.signing_key,
        keys.identity_public_key,
        lambda seed: sealing.kem_private_key(seed, "mask-key"),
        lambda seed: sealing.kem_public_key(seed, "mask-key"),
    ):
        with pytest.raises(LocalProtocolError) as caught:
            use(secret)
        assert caught.value.reason == "seed-size"


# -- certificates ------------------------------------------------------------------------------


def certificate() -> Certificate:
    return keys.issue_certificate(PARTNER, DEVICE_KEY, NOW)


def refusal(changed: Certificate, *, partners: tuple[bytes, ...] = (PARTNER_KEY,)) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        keys.verify_certificate(changed, partners, NOW)
    return caught.value.reason


def test_a_certificate_counts_up_to_its_last_second_within_the_skew_of_clocks() -> None:
    keys.verify_certificate(certificate(), {PARTNER_KEY}, NOW + CLOCK_SKEW_S)
    with pytest.raises(RemoteProtocolError) as caught:
        keys.verify_certificate(certificate(), {PARTNER_KEY}, NOW + CLOCK_SKEW_S + 0.5)
    assert caught.value.reason == "certificate-expired"
    assert caught.value.remedy


def test_only_the_listed_partners_certify() -> None:
    other = keys.identity_public_key(OTHER_PARTNER)
    assert refusal(certificate(), partners=(other,)) == "partner-unknown"
    assert refusal(certificate(), partners=()) == "partner-unknown"
    by_another = keys.issue_certificate(OTHER_PARTNER, DEVICE_KEY, NOW)
    assert refusal(by_another) == "partner-unknown"
    keys.verify_certificate(by_another, (PARTNER_KEY, other), NOW)


def test_a_certificate_of_another_partner_does_not_pass_under_a_listed_name() -> None:
    forged = keys.issue_certificate(OTHER_PARTNER, DEVICE_KEY, NOW)
    renamed = Certificate(forged.identity_key, PARTNER_KEY, forged.not_after, forged.signature)
    assert refusal(renamed) == "certificate-invalid"


@pytest.mark.parametrize(
    ("identity_key", "not_after", "signature"),
    [
        (bytes(32), None, None),
        (b"", None, None),
        (DEVICE_KEY[:31], None, None),
        (DEVICE_KEY + b"\0", None, None),
        (None, NOW + 1, None),
        (None, 2**63 - 1, None),
        (None, None, b""),
        (None, None, bytes(64)),
        (None, None, bytes(65)),
    ],
)
def test_a_tampered_certificate_is_refused(
    identity_key: bytes | None, not_after: int | None, signature: bytes | None
) -> None:
    good = certificate()
    changed = Certificate(
        good.identity_key if identity_key is None else identity_key,
        good.partner_key,
        good.not_after if not_after is None else not_after,
        good.signature if signature is None else signature,
    )
    assert refusal(changed) == "certificate-invalid"


@pytest.mark.parametrize("not_after", [-1, -(2**63), 2**63, 2**64 - 1])
def test_times_out_of_range_are_refused_not_raised(not_after: int) -> None:
    good = certificate()
    changed = Certificate(good.identity_key, good.partner_key, not_after, good.signature)
    assert refusal(changed) == "certificate-expired"


@pytest.mark.parametrize("partner", [b"", bytes(31), bytes(32), b"\xff" * 32])
def test_a_malformed_partner_key_certifies_nobody(partner: bytes) -> None:
    good = certificate()
    changed = Certificate(good.identity_key, partner, good.not_after, good.signature)
    assert refusal(changed, partners=(partner,)) == "certificate-invalid"


def test_a_partners_signature_does_not_make_a_key_of_another_size() -> None:
    short = DEVICE_KEY[:31]
    signed = encode_parts("certificate", short, PARTNER_KEY, NOW.to_bytes(8, "little"))
    signature = keys.signing_key(PARTNER).sign(signed).signature
    assert refusal(Certificate(short, PARTNER_KEY, NOW, signature)) == "certificate-invalid"


def test_certificates_are_for_keys_of_32_bytes() -> None:
    with pytest.raises(LocalProtocolError) as caught:
        keys.issue_certificate(PARTNER, DEVICE_KEY[:31], NOW)
    assert caught.value.reason == "identity-key-size"


SHORT = Secret(b"short")
CERTIFICATE = keys.issue_certificate(PARTNER, DEVICE_KEY, 1_000)
FORGED = keys.Certificate(DEVICE_KEY, PARTNER_KEY, 1_000, bytes(64))
REFUSED = {
    "a signing seed": Case(
        lambda: keys.signing_key(SHORT), "seed-size", 32, 5, error=LocalProtocolError
    ),
    "an identity key to certify": Case(
        lambda: keys.issue_certificate(PARTNER, b"short", 1),
        "identity-key-size",
        32,
        5,
        error=LocalProtocolError,
    ),
    "a partner that does not count": Case(
        lambda: keys.verify_certificate(CERTIFICATE, [b"b" * 32, b"a" * 32], 10),
        "partner-unknown",
        ["61" * 32, "62" * 32],
        PARTNER_KEY.hex(),
        culprit=DEVICE_KEY,
    ),
    "an expired certificate": Case(
        lambda: keys.verify_certificate(CERTIFICATE, [PARTNER_KEY], 1_300.5),
        "certificate-expired",
        "valid at 1300",
        1_000,
        culprit=DEVICE_KEY,
    ),
    "a forged certificate": Case(
        lambda: keys.verify_certificate(FORGED, [PARTNER_KEY], 10),
        "certificate-invalid",
        culprit=DEVICE_KEY,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_is_wrong(name: str) -> None:
    refused(REFUSED[name])


def test_a_certificate_is_valid_until_its_last_second() -> None:
    keys.verify_certificate(CERTIFICATE, [PARTNER_KEY], 1_000)
    first = keys.issue_certificate(PARTNER, DEVICE_KEY, 0)
    keys.verify_certificate(first, [PARTNER_KEY], 0)
