"""The rules of an advert, applied alike by the aggregator and by every neighbour."""

from __future__ import annotations

from collections.abc import Collection

from secagg import keys
from secagg.errors import RemoteProtocolError
from secagg.limits import CLOCK_SKEW_S, DIGEST_BYTES, KEM_PUBLIC_KEY_BYTES
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
    return advert
