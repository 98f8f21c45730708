"""Check-in: is this offer genuine, is the ledger what it was, does the policy admit it?

In this order, before anything is trained or sent; the model comes last and by its digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import nacl.exceptions
import nacl.signing
import numpy as np
import safetensors.numpy

from client_sdk.device import Device
from client_sdk.errors import TransportError
from dp.contracts.scaffold import has_control
from secagg.adapter import vector_length
from secagg.api import Offer
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.limits import DIGEST_BYTES
from secagg.manifest import Manifest, decode_manifest, manifest_digest

_MODEL_HEADER_BYTES = 65_536
_PAUSED_WAIT_S = 5.0
_TIME_MAX_S = 1e11  # Unix seconds; the year 5138


@dataclass(frozen=True)
class CheckIn:
    """An admitted offer. ``skew_s``: the server's clock minus this device's.

    ``control``: SCAFFOLD's c of this version, float32[d]; None for other algorithms.
    """

    offer: Offer
    manifest: Manifest
    digest: bytes
    skew_s: float
    vector: np.ndarray = field(repr=False)
    control: np.ndarray | None = field(default=None, repr=False)

    def server_now(self, now_s: float) -> float:
        return now_s + self.skew_s


def verify_offer(offer: Offer, task: str, task_key: bytes) -> Manifest:
    """The manifest of an offer, signed by the key that this device was enrolled with.

    Raises:
        RemoteProtocolError: ``manifest-signature``, ``manifest-task``, ``manifest-key``, or as
            ``decode_manifest``.
    """
    try:
        nacl.signing.VerifyKey(task_key).verify(
            encode_parts("manifest", offer.manifest), offer.manifest_signature
        )
    except (nacl.exceptions.CryptoError, ValueError, TypeError) as error:
        raise RemoteProtocolError(
            "manifest-signature", "The manifest is not signed by this device's aggregator."
        ) from error
    manifest = decode_manifest(offer.manifest)
    if manifest.task != task:
        raise RemoteProtocolError(
            "manifest-task",
            "The manifest is for another task.",
            expected=task,
            found=manifest.task,
        )
    if manifest.task_key != task_key:
        raise RemoteProtocolError(
            "manifest-key",
            "The manifest names another task key.",
            expected=task_key.hex(),
            found=manifest.task_key.hex(),
        )
    return manifest


async def next_offer(
    device: Device, task: str, after_version: int | None, until_s: float = math.inf
) -> Offer | None:
    """Wait for an open offer with a newer model than ``after_version``; None: the task is over.

    From ``until_s`` on (Unix seconds) the same version will do.
    """
    transport, paused = device.transport, False
    while True:
        wait_s = min(transport.settings.poll_s, max(0.0, until_s - device.clock()))
        if device.clock() >= until_s:
            after_version = None
        offer = await transport.offer(task, after_version, wait_s)
        if offer.state == "finished":
            return None
        if offer.state != "open":
            if not paused:
                await device.emit("waiting", task, reason=f"task-{offer.state}"[:64])
            paused = True
            await device.sleep(_PAUSED_WAIT_S)
        elif after_version is None or offer.model.version > after_version:
            return offer


async def check_in(device: Device, task: str, offer: Offer) -> CheckIn:
    """Verify and admit an offer, and bring its model to this device.

    Raises:
        RemoteProtocolError: as :func:`verify_offer`, or ``manifest-ledger``, ``offer-malformed``.
        LedgerError: the ledger forked or was rolled back.
        PolicyRefusal: the policy's reason.
        TransportError: also ``model-size``, ``model-digest`` or ``model-malformed``.
    """
    skew_s = offer.now - device.clock()
    manifest = verify_offer(offer, task, device.bundle.task_key)
    digest = manifest_digest(offer.manifest)
    if manifest.ledger_verifier != device.bundle.ledger_verifier:
        raise RemoteProtocolError(
            "manifest-ledger",
            "The manifest names another ledger.",
            expected=device.bundle.ledger_verifier,
            found=manifest.ledger_verifier,
        )
    _check_numbers(offer)
    await device.ledger.advance()
    device.policy.admit(
        manifest,
        own_partner=device.bundle.certificate.partner_key,
        account=device.account,
    )
    model = await fetch_model(device, manifest, offer)
    await device.emit(
        "checked-in",
        task,
        version=offer.model.version,
        releases=offer.releases,
        manifest_digest=digest.hex(),
    )
    return CheckIn(offer, manifest, digest, skew_s, model["vector"], model.get("control"))


def _check_numbers(offer: Offer) -> None:
    """What the parser cannot know: sizes, signs, and times that are times."""
    times = (offer.now, offer.model.opened_at)
    if (
        len(offer.model.digest) != DIGEST_BYTES
        or offer.model.version < 0
        or offer.releases < 0
        or not all(0 <= time_s <= _TIME_MAX_S for time_s in times)
    ):
        raise RemoteProtocolError(
            "offer-malformed",
            "The offer's numbers are impossible.",
            found=(offer.model.version, offer.releases, *times),
        )


def model_length(manifest: Manifest) -> int:
    """Numbers in the global vector: the adapter's, or all segments' without one."""
    if manifest.adapter is None:
        return manifest.data_length
    return vector_length(manifest.adapter)


async def fetch_model(device: Device, manifest: Manifest, offer: Offer) -> dict[str, np.ndarray]:
    """``vector`` and, with SCAFFOLD, ``control``; from disk or by a resumable download.

    Both are float32[d], read-only.

    Raises:
        TransportError: ``model-size``, ``model-digest`` or ``model-malformed``.
    """
    length, model = model_length(manifest), offer.model
    names = ("vector", "control") if has_control(manifest) else ("vector",)
    size_max = 4 * length * len(names) + _MODEL_HEADER_BYTES
    if not 0 < model.size_bytes <= size_max:
        raise TransportError(
            "model-size",
            "The offered model is larger than the adapter can be.",
            expected=size_max,
            found=model.size_bytes,
        )
    path = device.journal.models / model.digest.hex()
    if not await asyncio.to_thread(_holds, path, model.digest):
        part = path.with_suffix(".part")
        await device.transport.download_model(model.digest, model.size_bytes, part)
        if not await asyncio.to_thread(_holds, part, model.digest):
            part.unlink()
            raise TransportError(
                "model-digest",
                "The downloaded model is not the one that was offered.",
                expected=model.digest.hex(),
                remedy="Try again; if it persists, the aggregator's store is damaged.",
            )
        part.replace(path)
    _forget_other_models(path)
    return _read_model(path, length, names)


def _holds(path: Path, digest: bytes) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest() == digest


def _forget_other_models(keep: Path) -> None:
    for other in keep.parent.iterdir():
        if other != keep:
            other.unlink()


def _read_model(path: Path, length: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:  # the format's own error type is not public
        raise TransportError(
            "model-malformed", f"The model does not parse: {type(error).__name__}."
        ) from error
    found = {name: (str(t.dtype), t.shape) for name, t in tensors.items()}
    if found != {name: ("float32", (length,)) for name in names}:
        raise TransportError(
            "model-malformed",
            "The model does not hold the vectors of the task's adapter and algorithm.",
            expected=f"float32 tensors {', '.join(names)} of shape ({length},)",
            found=found,
        )
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise TransportError("model-malformed", "The model has values that are not finite.")
    for tensor in tensors.values():
        tensor.flags.writeable = False
    return tensors
