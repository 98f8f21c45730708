"""An access token is good for its device, one aggregator, and minutes."""

from __future__ import annotations

import base64

import msgspec
import pytest

from secagg import keys
from secagg.access_token import issue_access_token, verify_access_token
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.http_api import ACCESS_TOKEN_MAX_S, AccessToken
from secagg.limits import CLOCK_SKEW_S
from secagg.messages import Certificate
from secagg.secret import Secret

PARTNER, DEVICE, OTHER = (Secret(bytes([number]) * 32) for number in (1, 2, 3))
PARTNER_KEY = keys.identity_public_key(PARTNER)
DEVICE_KEY = keys.identity_public_key(DEVICE)
AUDIENCE = keys.identity_public_key(Secret(b"\x09" * 32))
NOW = 1_800_000_000
CERTIFICATE = keys.issue_certificate(PARTNER, DEVICE_KEY, NOW + 1_000_000)


def token(now_s: float = NOW) -> str:
    return issue_access_token(DEVICE, CERTIFICATE, AUDIENCE, now_s)


def handmade(
    expires_at: int, *, signer: Secret = DEVICE, certificate: Certificate = CERTIFICATE
) -> str:
    signed = encode_parts("access", AUDIENCE, (expires_at % 2**64).to_bytes(8, "little"))
    body = AccessToken(
        certificate=certificate,
        expires_at=expires_at,
        signature=keys.signing_key(signer).sign(signed).signature,
    )
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(body)).decode()


def refusal(
    text: str,
    *,
    audience: bytes = AUDIENCE,
    partners: tuple[bytes, ...] = (PARTNER_KEY,),
    now_s: float = NOW,
) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        verify_access_token(text, audience, partners, now_s)
    return caught.value.reason


def test_a_token_names_its_device() -> None:
    assert verify_access_token(token(), AUDIENCE, {PARTNER_KEY}, NOW) == DEVICE_KEY
    assert verify_access_token(token(NOW + 0.9), AUDIENCE, {PARTNER_KEY}, NOW) == DEVICE_KEY


@pytest.mark.parametrize("skew_s", [-CLOCK_SKEW_S, 0, CLOCK_SKEW_S])
def test_clocks_may_differ_by_the_declared_skew(skew_s: int) -> None:
    verify_access_token(token(NOW + skew_s), AUDIENCE, {PARTNER_KEY}, NOW)


def test_an_expired_token_is_refused() -> None:
    last = NOW + ACCESS_TOKEN_MAX_S + CLOCK_SKEW_S
    verify_access_token(token(), AUDIENCE, {PARTNER_KEY}, last)
    assert refusal(token(), now_s=last + 1) == "token-expired"
    assert refusal(token(), now_s=last + 10**9) == "token-expired"


def test_a_token_that_lives_too_long_is_refused() -> None:
    longest = NOW + ACCESS_TOKEN_MAX_S + CLOCK_SKEW_S
    verify_access_token(handmade(longest), AUDIENCE, {PARTNER_KEY}, NOW)
    assert refusal(handmade(longest + 1)) == "token-lifetime"
    for expires_at in (2**53, 2**63, 2**64 - 1):
        assert refusal(handmade(expires_at)) == "token-malformed"


def test_a_negative_time_is_refused_not_raised() -> None:
    assert refusal(handmade(-1)) == "token-malformed"


def test_a_token_for_another_aggregator_is_refused() -> None:
    assert refusal(token(), audience=DEVICE_KEY) == "token-signature"
    assert refusal(token(), audience=b"") == "token-signature"


def test_a_token_signed_by_another_device_is_refused() -> None:
    assert refusal(handmade(NOW + 60, signer=OTHER)) == "token-signature"


def test_the_certificate_inside_must_count() -> None:
    other = keys.identity_public_key(OTHER)
    assert refusal(token(), partners=(other,)) == "partner-unknown"
    late = NOW + 1_000_301
    assert refusal(token(late), now_s=late) == "certificate-expired"
    self_made = Certificate(DEVICE_KEY, PARTNER_KEY, NOW + 60, bytes(64))
    assert refusal(handmade(NOW + 60, certificate=self_made)) == "certificate-invalid"


def test_every_changed_bit_is_noticed() -> None:
    body = base64.urlsafe_b64decode(token())
    for bit in range(8 * len(body)):
        changed = bytearray(body)
        changed[bit // 8] ^= 1 << bit % 8
        assert refusal(base64.urlsafe_b64encode(bytes(changed)).decode())


def test_every_truncated_token_is_malformed() -> None:
    whole = token()
    assert {refusal(whole[:size]) for size in range(len(whole))} == {"token-malformed"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "a",
        "no base64!",
        "ümläut",
        "\ud800",
        "\0" * 8,
        "+/+/",
        "A" * 2_049,
        "A" * 1_000_000,
        base64.urlsafe_b64encode(b"\x91" * 1_500).decode(),
        base64.urlsafe_b64encode(b"\x81\xa1x" * 500).decode(),
        base64.urlsafe_b64encode(b"\x83\xabcertificate" + b"\x91" * 1_400).decode(),
        base64.urlsafe_b64encode(b"\xd9\xff" + b"\xff" * 255).decode(),
        base64.urlsafe_b64encode(msgspec.msgpack.encode({"certificate": None})).decode(),
        base64.urlsafe_b64encode(msgspec.msgpack.encode([1, 2, 3])).decode(),
    ],
    ids=lambda text: f"{len(text)} characters",
)
def test_what_is_no_token_is_malformed(text: str) -> None:
    assert refusal(text) == "token-malformed"


def test_a_token_is_capped_before_it_is_decoded() -> None:
    fat = Certificate(DEVICE_KEY, PARTNER_KEY, NOW + 60, bytes(1_500))
    assert refusal(handmade(NOW + 60, certificate=fat)) == "token-malformed"


def test_whitespace_and_other_spellings_are_refused() -> None:
    whole = token()
    for changed in (whole + "\n", " " + whole, whole[:10] + "\n" + whole[10:], whole + "===="):
        assert refusal(changed) == "token-malformed"
