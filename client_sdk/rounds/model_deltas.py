"""A model rebuilt from the one that the device holds, where the aggregator tells the difference.

Whatever goes wrong with a delta, the whole model is fetched instead, and the app is told.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

import safetensors.numpy

from client_sdk.errors import TransportError
from client_sdk.network.deltas import NO_DELTA
from client_sdk.network.http import is_transient
from client_sdk.network.uploads import unnoted
from client_sdk.rounds.device import RunningDevice
from client_sdk.state.models import remove_model
from dp.transfer_sizes import MODEL_HEADER_BYTES, model_tensors
from secagg.errors import RemoteProtocolError
from secagg.http_api import ModelVersion
from secagg.manifest import Manifest
from secagg.model_delta import Base, decode


async def rebuilt(
    device: RunningDevice,
    manifest: Manifest,
    model: ModelVersion,
    held: Path | None,
    begun: Path | None,
    folder: Path,
    note: Callable[[int, int], None] = unnoted,
) -> bytes | None:
    """The file of the model, of its digest; None: the whole is to be fetched.

    Args:
        held: a model that lies on the disk, named by its digest.
        begun: the part of a delta.
        note: hears how many bytes of the delta are there, and of how many.

    Raises:
        TransportError: the aggregator is out of reach or busy.
        StateError: ``disk``.
    """
    base = await asyncio.to_thread(_read, held)
    try:
        delta = await device.transport.download_delta(
            model.digest, base.digest, model.size_bytes - 1, begun, folder, note
        )
    except TransportError as error:
        if is_transient(error) and error.own_status != 500:
            raise
        if begun is not None:
            remove_model(begun)
        if error.reason != NO_DELTA:
            await _tell(device, manifest, error)
        return None
    try:
        return await asyncio.to_thread(_apply, delta, base, manifest, model)
    except RemoteProtocolError as error:
        await _tell(device, manifest, error)
        return None
    finally:
        remove_model(delta)


def _read(held: Path | None) -> Base:
    """A model that was whole when it was kept; nothing if it is no more."""
    if held is None:
        return Base()
    digest, content = bytes.fromhex(held.name), held.read_bytes()
    if hashlib.sha256(content).digest() != digest:
        return Base()
    try:
        return Base(digest, safetensors.numpy.load(content))
    except Exception:  # the format's own error type is not public
        return Base()


def _apply(delta: Path, base: Base, manifest: Manifest, model: ModelVersion) -> bytes:
    """
    Raises:
        RemoteProtocolError: ``delta-malformed``, ``delta-digest``.
    """
    content = decode(delta.read_bytes(), base, model_tensors(manifest), MODEL_HEADER_BYTES)
    found = hashlib.sha256(content).digest()
    if found != model.digest:
        raise RemoteProtocolError(
            "delta-digest",
            "What the delta makes is not the model that was offered.",
            expected=model.digest.hex(),
            found=found.hex(),
            remedy="The whole model is fetched instead; tell the operator if that persists.",
        )
    return content


async def _tell(
    device: RunningDevice, manifest: Manifest, error: TransportError | RemoteProtocolError
) -> None:
    await device.emit("delta-refused", manifest.task, reason=error.reason, message=str(error))
