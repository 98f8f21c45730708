"""A device's own access token: signed by its identity key, valid for minutes, stored nowhere.

It authenticates requests to the aggregator. What a device says *in the protocol* is signed
separately, so a stolen token delays a device and reveals nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from functools import lru_cache

import msgspec

from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.http_api import ACCESS_TOKEN_MAX_S, AccessToken
from secagg.keys import signing_key, verify_certificate, verify_signature
from secagg.limits import CLOCK_SKEW_S, COHORT_MAX
from secagg.messages import Certificate
from secagg.secret import Secret

_TOKEN_CHARACTERS_MAX = 2_048
_decoder = msgspec.msgpack.Decoder(AccessToken, strict=True)


def _signed(audience: bytes, expires_at: int) -> bytes:
    return encode_parts("access", audience, expires_at.to_bytes(8, "little"))


def issue_access_token(
    identity: Secret, certificate: Certificate, audience: bytes, now_s: float
) -> str:
    """A bearer token for the aggregator whose task key is ``audience``."""
    expires_at = int(now_s) + ACCESS_TOKEN_MAX_S
    signature = signing_key(identity).sign(_signed(audience, expires_at)).signature
    token = msgspec.msgpack.encode(
        AccessToken(certificate=certificate, expires_at=expires_at, signature=signature)
    )
    return base64.urlsafe_b64encode(token).decode("ascii")


def verify_access_token(
    token: str, audience: bytes, partner_keys: Collection[bytes], now_s: float
) -> bytes:
    """The identity key (32 bytes) of the device that made the token; raises as
    :func:`certificate_of_token`."""
    return certificate_of_token(token, audience, partner_keys, now_s).identity_key


def certificate_of_token(
    token: str, audience: bytes, partner_keys: Collection[bytes], now_s: float
) -> Certificate:
    """The certificate of the device that made the token.

    Raises:
        RemoteProtocolError: ``token-malformed``, ``token-expired``, ``token-lifetime``,
            ``token-signature``, or as :func:`secagg.keys.verify_certificate`.
    """
    try:
        if len(token) > _TOKEN_CHARACTERS_MAX:
            raise ValueError("too long")
        decoded = _decoder.decode(base64.b64decode(token, altchars=b"-_", validate=True))
        signed = _signed(audience, decoded.expires_at)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise RemoteProtocolError("token-malformed", "The access token does not parse.") from error
    if decoded.expires_at < now_s - CLOCK_SKEW_S:
        raise RemoteProtocolError(
            "token-expired",
            "The access token has expired.",
            expected=f"valid at {int(now_s)}",
            found=decoded.expires_at,
            remedy="Issue a new one; check the device's clock.",
        )
    if decoded.expires_at > now_s + ACCESS_TOKEN_MAX_S + CLOCK_SKEW_S:
        raise RemoteProtocolError(
            "token-lifetime",
            "The access token is valid for too long.",
            expected=f"at most {ACCESS_TOKEN_MAX_S} s",
            found=decoded.expires_at,
        )
    verify_certificate(decoded.certificate, partner_keys, now_s)
    _verify_token_signature(decoded.certificate.identity_key, signed, decoded.signature)
    return decoded.certificate


@lru_cache(maxsize=COHORT_MAX)
def _verify_token_signature(identity_key: bytes, signed: bytes, signature: bytes) -> None:
    """The part of a token that no time changes: a device shows the same one for minutes. A failure
    is not remembered."""
    if not verify_signature(identity_key, signed, signature):
        raise RemoteProtocolError(
            "token-signature", "The access token was not signed by the device it names."
        )
