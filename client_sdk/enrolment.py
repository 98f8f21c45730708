"""Enrolment: how a partner certifies its own devices.

The partner holds an Ed25519 key that the aggregator never sees; a bundle gives one device its
identity, the partner's certificate, and the aggregator's public keys to trust. A bundle holds the
identity seed: its file is as secret as the device.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
import nacl.signing

from client_sdk import outputs
from client_sdk.errors import EnrolmentError
from dp.tlog.notes import parse_verifier
from secagg.errors import SecaggError
from secagg.files.text import TextFile
from secagg.http_api import EnrolmentBundle
from secagg.keys import issue_certificate, verify_certificate
from secagg.limits import IDENTITY_KEY_BYTES, SEED_BYTES
from secagg.secret import Secret

_BUNDLE = TextFile(
    "enrolment bundle",
    EnrolmentError,
    "bundle-unreadable",
    "bundle-malformed",
    16_384,
    "secret-open",
    "Name the bundle that `secagg enroll` wrote for this device.",
)
_PARTNER_KEY = TextFile(
    "partner's key",
    EnrolmentError,
    "partner-key-unreadable",
    "partner-key-malformed",
    16_384,
    "secret-open",
    "Make one with `secagg partner key FILE`.",
)


class PartnerKey(NamedTuple):
    """A partner's key pair: the seed stays with the partner, the key goes to the operator."""

    seed: Secret
    key: bytes


def new_partner_key() -> PartnerKey:
    """A fresh Ed25519 key pair of a partner."""
    signing = nacl.signing.SigningKey.generate()
    return PartnerKey(Secret(bytes(signing)), bytes(signing.verify_key))


def create_bundle(
    server: str,
    task_key: bytes,
    ledger_verifier: str,
    partner_seed: Secret,
    not_after: int,
) -> EnrolmentBundle:
    """A bundle for a new device: a fresh identity, certified by the partner.

    Args:
        server: base URL of the aggregator, http or https.
        task_key, ledger_verifier: the aggregator's public keys, from ``GET /v1/server`` once and
            compared by a person.
        partner_seed: the partner's Ed25519 seed, 32 bytes.
        not_after: Unix seconds at which the certificate ends.

    Raises:
        EnrolmentError: as :func:`check_bundle`.
    """
    identity = nacl.signing.SigningKey.generate()
    certificate = issue_certificate(partner_seed, bytes(identity.verify_key), not_after)
    bundle = EnrolmentBundle(
        server=server.rstrip("/"),
        task_key=task_key,
        ledger_verifier=ledger_verifier,
        identity_seed=bytes(identity),
        certificate=certificate,
    )
    check_bundle(bundle)
    return bundle


def check_bundle(bundle: EnrolmentBundle, now_s: float | None = None) -> None:
    """Check that a bundle's parts fit together; with ``now_s`` also that it has not ended.

    Raises:
        EnrolmentError: ``bundle-server``, ``bundle-key``, ``bundle-verifier``,
            ``bundle-identity`` or ``bundle-certificate``.
    """
    if not _usable(bundle.server):
        raise EnrolmentError(
            "bundle-server",
            "The aggregator's address cannot be used.",
            expected="http(s)://host[:port], without user, query and fragment",
            found=None if "@" in bundle.server else bundle.server,  # it may hold a password
            remedy="Enrol the device again, with the aggregator's address.",
        )
    if len(bundle.task_key) != IDENTITY_KEY_BYTES:
        raise EnrolmentError(
            "bundle-key",
            "The task key has the wrong size.",
            expected=IDENTITY_KEY_BYTES,
            found=len(bundle.task_key),
        )
    try:
        parse_verifier(bundle.ledger_verifier)
    except SecaggError as error:
        raise EnrolmentError("bundle-verifier", f"The ledger's key is bad: {error}") from error
    if len(bundle.identity_seed) != SEED_BYTES:
        raise EnrolmentError(
            "bundle-identity",
            "The identity seed has the wrong size.",
            expected=SEED_BYTES,
            found=len(bundle.identity_seed),
        )
    certificate = bundle.certificate
    identity_key = bytes(nacl.signing.SigningKey(bundle.identity_seed).verify_key)
    if certificate.identity_key != identity_key:
        raise EnrolmentError(
            "bundle-identity",
            "The certificate is for another device.",
            expected=identity_key.hex(),
            found=certificate.identity_key.hex(),
        )
    at = min(certificate.not_after, 0) if now_s is None else now_s
    try:
        verify_certificate(certificate, frozenset((certificate.partner_key,)), at)
    except SecaggError as error:
        raise EnrolmentError(
            "bundle-certificate", f"The partner's certificate does not hold: {error}"
        ) from error


def _usable(server: str) -> bool:
    try:
        url = urlsplit(server)
        return (
            url.scheme in ("http", "https")
            and bool(url.hostname)
            and (url.port or 1) > 0
            and url.username is None  # nor a password
            and not (url.query or url.fragment)
        )
    except ValueError:
        return False


def save_bundle(path: Path, bundle: EnrolmentBundle) -> None:
    """Write a bundle as JSON, mode 0600. Where it lies already, nothing changes.

    Raises:
        OutputError: ``out-taken`` if there is another file: a bundle is a device's only key.
    """
    encoded = msgspec.json.format(msgspec.json.encode(bundle)) + b"\n"
    outputs.write_file(path, encoded, lambda place: place.read_bytes() == encoded, private=True)


def load_bundle(path: Path) -> EnrolmentBundle:
    """Read and check a bundle.

    Raises:
        EnrolmentError: ``bundle-unreadable``, ``bundle-malformed``, ``secret-open`` (others can
            read the file), or as :func:`check_bundle`.
    """
    try:
        bundle = msgspec.json.decode(_BUNDLE.read(path), type=EnrolmentBundle)
    except (msgspec.MsgspecError, ValueError) as error:
        raise EnrolmentError(
            "bundle-malformed",
            f"{path} is not an enrolment bundle: {error}.",
            remedy=_BUNDLE.remedy,
        ) from error
    check_bundle(bundle)
    return bundle


def save_partner_key(path: Path, seed: Secret) -> None:
    """Write a partner's seed as one line of base64, mode 0600.

    Raises:
        OutputError: ``out-taken`` if there is a file: it may hold another key.
    """
    outputs.write_file(path, base64.b64encode(seed.reveal()) + b"\n", private=True)


def load_partner_key(path: Path) -> PartnerKey:
    """Read a partner's key.

    Raises:
        EnrolmentError: ``partner-key-unreadable``, ``secret-open`` or ``partner-key-malformed``.
    """
    try:
        seed = base64.b64decode(_PARTNER_KEY.read(path).strip(), validate=True)
    except ValueError as error:
        raise EnrolmentError(
            "partner-key-malformed",
            f"{path} is not a partner key: {error}.",
            remedy=_PARTNER_KEY.remedy,
        ) from error
    if len(seed) != SEED_BYTES:
        raise EnrolmentError(
            "partner-key-malformed",
            f"{path} is not a partner key.",
            expected=f"{SEED_BYTES} bytes in base64",
            found=f"{len(seed)} bytes",
            remedy=_PARTNER_KEY.remedy,
        )
    return PartnerKey(Secret(seed), bytes(nacl.signing.SigningKey(seed).verify_key))
