"""The rules of an advert, applied alike by the aggregator and by every neighbour."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from secagg import keys
from secagg.errors import RemoteProtocolError
from secagg.limits import (
    CLOCK_SKEW_S,
    DIGEST_BYTES,
    IDENTITY_KEY_BYTES,
    KEM_PUBLIC_KEY_BYTES,
    PARTNERS_MAX,
)
from secagg.manifest import Manifest
from secagg.messages import Advert, verify


def check_advert(
    signed_advert: bytes,
    manifest: Manifest,
    manifest_digest: bytes,
    partner_keys: Collection[bytes],
    now_s: float,
) -> Advert:
    """Verify a signed advert for this task and return it.

    Args:
        partner_keys: Ed25519 keys that may certify its sender.
        now_s: Unix seconds; an expiry is tolerated for ``CLOCK_SKEW_S``.

    Raises:
        RemoteProtocolError: naming the sender once its signature is verified; reasons
            ``advert-*`` or those of ``secagg.keys.verify_certificate``.
    """
    advert, signer = verify(signed_advert, b"", Advert)
    if signer != advert.certificate.identity_key:
        raise RemoteProtocolError(
            "advert-signer",
            "The advert was not signed by the key that its certificate names.",
            culprit=signer,
            expected=advert.certificate.identity_key.hex(),
            found=signer.hex(),
        )
    try:
        keys.verify_certificate(advert.certificate, partner_keys, now_s)
    except RemoteProtocolError as error:
        error.culprit = signer
        raise
    if (advert.task, advert.manifest_digest) != (manifest.task, manifest_digest):
        raise RemoteProtocolError(
            "advert-manifest",
            "The advert is for another task or another manifest.",
            culprit=signer,
            expected=(manifest.task, manifest_digest.hex()),
            found=(advert.task, advert.manifest_digest.hex()),
            remedy="Fetch the current offer and report in for it.",
        )
    if advert.expires_at + CLOCK_SKEW_S < now_s:
        raise RemoteProtocolError(
            "advert-expired",
            "The advert has expired.",
            culprit=signer,
            expected=f"at least {now_s:.0f}",
            found=advert.expires_at,
            remedy="Report in again; check the clock.",
        )
    sizes = tuple(
        map(len, (advert.mask_key, advert.channel_key, advert.self_seed_commitment, advert.nonce))
    )
    wanted = (KEM_PUBLIC_KEY_BYTES, KEM_PUBLIC_KEY_BYTES, DIGEST_BYTES, DIGEST_BYTES)
    if sizes != wanted or len(advert.model_digest) != DIGEST_BYTES:
        raise RemoteProtocolError(
            "advert-malformed",
            "Keys, commitment or nonce of the advert have wrong sizes.",
            culprit=signer,
            expected=wanted,
            found=sizes,
        )
    if advert.mask_key == advert.channel_key:
        raise RemoteProtocolError(
            "advert-malformed", "Mask key and channel key must differ.", culprit=signer
        )
    _check_trusted(advert)
    return advert


def trusted_partners(advert: Advert) -> frozenset[bytes]:
    """Keys of the partners whose devices the sender of this advert accepts in its cohort."""
    return frozenset(advert.trusted or (advert.certificate.partner_key,))


def _check_trusted(advert: Advert) -> None:
    trusted, own = advert.trusted, advert.certificate.partner_key
    if (
        len(trusted) > PARTNERS_MAX
        or any(len(key) != IDENTITY_KEY_BYTES for key in trusted)
        or any(later <= earlier for earlier, later in pairwise(trusted))
        or own not in trusted_partners(advert)
    ):
        raise RemoteProtocolError(
            "advert-trust",
            "The advert does not list, in order, partners whose devices its sender accepts, with "
            "its own partner among them.",
            culprit=advert.certificate.identity_key,
            expected=f"{own.hex()} and at most {PARTNERS_MAX - 1} others",
            found=[key.hex() for key in trusted[:8]],
            remedy="Add the device's own partner to those that it trusts.",
        )
