"""Check-in: is this offer genuine, is the ledger what it was, does the policy admit it?

In this order, before anything is trained or sent; the model comes last and by its digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import nacl.exceptions
import nacl.signing
import numpy as np
import safetensors.numpy

from client_sdk.errors import PolicyRefusal, StateError, TransportError
from client_sdk.events import Event
from client_sdk.network.http import is_transient
from client_sdk.network.part_files import append, size_of, truncate
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.model_deltas import rebuilt
from client_sdk.rounds.progress import Progress
from client_sdk.rounds.revocations import refresh
from client_sdk.rounds.schedule import count_of, look_again
from client_sdk.state.models import (
    demand_plain,
    forget_models,
    held_beside,
    part_of,
    remove_model,
)
from dp.accounting.figures import upper
from dp.errors import MechanismError
from dp.ledger.trusted_log import LEAVES_MAX
from dp.noise.adaptive_clip import checked_clip, first_clip
from dp.transfer_sizes import download_size, model_tensors, needs_model
from dp.transfer_sizes import model_length as model_length
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.http_api import ModelVersion, Offer
from secagg.limits import DIGEST_BYTES
from secagg.manifest import Manifest, decode_manifest, manifest_digest

DISK_MARGIN_BYTES = 64 << 20  # left free beside a download, for the journal and for others
_PAUSED_WAIT_S = 5.0
_NO_MODEL = {"vector": np.zeros(0, np.float32)}
_TIME_MAX_S = 1e11  # Unix seconds; the year 5138


@dataclass(frozen=True)
class CheckIn:
    """An admitted offer.

    ``control``: SCAFFOLD's c of this version, float32[d]; None for other algorithms.
    ``clip``: of this version, where the clip adapts; None: the manifest's, for good.
    ``count``: this device's charges of the task's schedule so far; None: it has no schedule.
    """

    offer: Offer
    manifest: Manifest
    digest: bytes
    vector: np.ndarray = field(repr=False)
    control: np.ndarray | None = field(default=None, repr=False)
    clip: float | None = None
    count: int | None = None


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
    device: RunningDevice, task: str, after_version: int | None, until_s: float = math.inf
) -> Offer | None:
    """Wait for an open offer with a newer model than ``after_version``; None: the task is over.

    From ``until_s`` on (the server's time) the same version will do.
    """
    transport, paused = device.transport, False
    while True:
        now_s = device.time.now()
        wait_s = min(transport.settings.poll_s, max(0.0, until_s - now_s))
        if now_s >= until_s:
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


async def verified(device: RunningDevice, task: str, offer: Offer) -> tuple[Manifest, bytes]:
    """The manifest of an offer and its digest, and the ledger and account as they are now.

    Raises:
        RemoteProtocolError: as :func:`verify_offer`, or ``manifest-ledger``, ``offer-malformed``,
            or as :func:`client_sdk.rounds.revocations.refresh`.
        ClockError: as :meth:`client_sdk.network.server_time.ServerTime.hear`.
        LedgerRefusal: the ledger forked or was rolled back.
        StateError: ``data-account-missing``.
    """
    manifest = verify_offer(offer, task, device.bundle.task_key)
    if manifest.ledger_verifier != device.bundle.ledger_verifier:
        raise RemoteProtocolError(
            "manifest-ledger",
            "The manifest names another ledger.",
            expected=device.bundle.ledger_verifier,
            found=manifest.ledger_verifier,
        )
    _check_numbers(offer)
    device.time.hear(offer.now)
    await device.ledger.advance()
    await refresh(device, manifest, offer)
    device.account.refresh()
    return manifest, manifest_digest(offer.manifest)


async def demand_in_ledger(device: RunningDevice, offer: Offer, task: str, digest: bytes) -> None:
    """Return if the ledger names the offered model as one of the task.

    Raises:
        LedgerRefusal: ``model-not-in-ledger``; or the ledger itself does not verify.
    """
    await device.ledger.verify_models(
        frozenset((offer.model.digest,)),
        task=task,
        manifest_digest=digest,
        leaf_index=offer.model.leaf_index,
    )


async def check_in(device: RunningDevice, task: str, offer: Offer) -> CheckIn:
    """Verify and admit an offer, and bring its model to this device, if its task has one.

    Raises:
        RemoteProtocolError, ClockError: as :func:`verified`, or as :func:`proven_clip`.
        LedgerRefusal: the ledger forked or was rolled back, or does not name the model; as
            :func:`client_sdk.rounds.schedule.look_again`.
        PolicyRefusal: the policy's reason, or as :func:`client_sdk.rounds.schedule.count_of`.
        TransportError, StateError: also as :func:`fetch_model`.
    """
    manifest, digest = await verified(device, task, offer)
    try:
        device.policy.admit(
            manifest,
            own_partner=device.bundle.certificate.partner_key,
            account=device.account,
            usage=device.usage,
        )
    except PolicyRefusal as refusal:
        if refusal.reason != "not-now" and refusal.again_at is None:
            forget_models(device.journal.models)
        raise
    await look_again(device, manifest, debits=False)
    count = count_of(device, manifest)
    model = await fetch_model(device, manifest, offer) if needs_model(manifest) else _NO_MODEL
    clip = await proven_clip(device, manifest, digest, offer, model)
    await demand_in_ledger(device, offer, manifest.task, digest)
    terms = {
        "version": offer.model.version,
        "releases": offer.releases,
        "manifest_digest": digest.hex(),
    }
    detail = terms | _no_finite_total(device, manifest)
    await device.deliver(Event("checked-in", task, detail=detail))
    return CheckIn(offer, manifest, digest, model["vector"], model.get("control"), clip, count)


def _no_finite_total(device: RunningDevice, manifest: Manifest) -> dict[str, object]:
    """Which tasks leave no finite total once this one is charged; empty without.

    Of an example, and of each unit that counts: its noise may be missing in a task that protects
    the other one. What the other tasks cost is limited as ever, in a total of their own.
    """
    counted = {"example": None} | dict.fromkeys(sorted(device.policy.units))
    totals = [device.account.after(manifest, unit)[1] for unit in counted]
    tasks = dict.fromkeys(task for total in totals for task in total.unbounded)
    if not tasks:
        return {}
    others = max(total.bounded for total in totals)
    return {"no_finite_total": ", ".join(tasks), "others": upper(others)}


async def proven_clip(
    device: RunningDevice,
    manifest: Manifest,
    digest: bytes,
    offer: Offer,
    model: Mapping[str, np.ndarray],
) -> float | None:
    """The clip in the model file, if it is what the ledger says of this version.

    Version 0 has the manifest's clip; every other the one in the record of the release that made
    it. None where the clip is fixed. A wrong one could only hurt learning
    (:mod:`dp.noise.adaptive_clip`).

    Raises:
        RemoteProtocolError: ``clip-out-of-range`` (or not finite) or ``clip-mismatch``.
        LedgerRefusal: ``model-not-in-ledger``; or the ledger itself does not verify.
    """
    if manifest.clip_adaptation is None:
        return None
    clip = float(model["clip"][0])
    try:
        checked_clip(manifest, clip)
    except MechanismError as error:
        raise RemoteProtocolError(error.reason, str(error)) from error
    if offer.model.version == 0:
        expected: float | None = first_clip(manifest)
    else:
        expected = await device.ledger.released_clip(
            offer.model.digest, task=manifest.task, manifest_digest=digest
        )
    if clip != expected:
        raise RemoteProtocolError(
            "clip-mismatch",
            "The clip of the offered model is not the one that the ledger names.",
            expected=expected,
            found=clip,
            remedy="Ask the operator; the model's file and the ledger disagree.",
        )
    return clip


def _check_numbers(offer: Offer) -> None:
    """What the parser cannot know: sizes, signs, and times that are times."""
    times = (offer.now, offer.model.opened_at)
    if (
        len(offer.model.digest) != DIGEST_BYTES
        or offer.model.version < 0
        or not -1 <= offer.model.leaf_index <= LEAVES_MAX
        or offer.releases < 0
        or not all(0 <= time_s <= _TIME_MAX_S for time_s in times)
    ):
        raise RemoteProtocolError(
            "offer-malformed",
            "The offer's numbers are impossible.",
            found=(offer.model.version, offer.releases, *times),
        )


async def fetch_model(
    device: RunningDevice, manifest: Manifest, offer: Offer
) -> dict[str, np.ndarray]:
    """``vector`` and, with SCAFFOLD, ``control``; from disk or by a resumable download.

    Both are float32[d], read-only. Where the clip adapts also ``clip``, float64[1]. A model that
    the device holds is what the next one is told from, and goes when that is whole: one file is
    left on the disk, or until then what has come and what is held.

    Raises:
        TransportError: ``model-size``, ``model-digest``, ``model-late`` or ``model-malformed``.
        StateError: ``disk-space``, ``disk``, or as :func:`client_sdk.state.models.demand_plain`
            and :func:`client_sdk.state.models.forget_models`.
    """
    model, size_max = offer.model, download_size(manifest)
    path = device.journal.models / model.digest.hex()
    if not 0 < model.size_bytes <= size_max:
        forget_models(device.journal.models)
        raise TransportError(
            "model-size",
            "The offered model is larger than the adapter can be.",
            expected=size_max,
            found=model.size_bytes,
        )
    held, begun = held_beside(path)
    if size_of(part_of(path)):
        begun = None  # the whole is under way
    forget_models(device.journal.models, keep=path, also=(held, begun))
    demand_plain(path, part_of(path))
    if not await asyncio.to_thread(_holds, path, model.digest):
        remove_model(path)
        await _download(device, manifest, model, path, held, begun)
    forget_models(device.journal.models, keep=path)
    try:
        return _read_model(path, model_tensors(manifest))
    except TransportError:
        remove_model(path)
        raise


async def _download(
    device: RunningDevice,
    manifest: Manifest,
    model: ModelVersion,
    path: Path,
    held: Path | None,
    begun: Path | None,
) -> None:
    """Bring a model to ``path``, as a delta or whole.

    Its part stays only where the same transfer may go on later.
    """
    part, most_s = part_of(path), device.policy.max_hold_s
    digest, size_bytes = model.digest, model.size_bytes
    progress = Progress(device, "download", manifest.task)
    try:
        _demand_room(part, size_bytes)
        async with asyncio.timeout(most_s):
            content = None
            if not size_of(part):
                told = rebuilt(device, manifest, model, held, begun, path.parent, progress.note)
                content = await progress.during(told)
            if content is not None:
                await asyncio.to_thread(_write_part, part, content)
            else:
                transport = device.transport
                transfer = transport.download_model(digest, size_bytes, part, progress.note)
                await progress.during(transfer)
        if not await asyncio.to_thread(_holds, part, digest):
            raise TransportError(
                "model-digest",
                "The downloaded model is not the one that was offered.",
                expected=digest.hex(),
                remedy="Try again; if it persists, the aggregator's store is damaged.",
            )
    except TimeoutError as error:
        remove_model(part)
        raise TransportError(
            "model-late",
            "The model did not come in the time that the policy gives a task.",
            expected=f"{size_bytes} bytes within {most_s:g} s",
            remedy="Use a faster network, or raise max_hold_s in this app's policy.",
        ) from error
    except (TransportError, StateError) as error:
        if not is_transient(error):
            remove_model(part)
        raise
    part.replace(path)


def _write_part(part: Path, content: bytes) -> None:
    truncate(part)
    append(part, content)


def _demand_room(part: Path, size_bytes: int) -> None:
    """Whether what is still to come fits on the disk, with a margin.

    Raises:
        StateError: ``disk-space``.
    """
    have = part.stat().st_size if part.exists() else 0
    needed = max(0, size_bytes - have) + DISK_MARGIN_BYTES
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise StateError(
            "disk-space",
            "The disk has no room for the task's model.",
            expected=f"{needed} bytes free, {DISK_MARGIN_BYTES} of them to spare",
            found=free,
            remedy="Make room on the disk that holds the state folder, or move the folder.",
        )


def _holds(path: Path, digest: bytes) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest() == digest


def _read_model(
    path: Path, expected: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, np.ndarray]:
    """The tensors, of exactly these names, types and shapes."""
    try:
        tensors = safetensors.numpy.load_file(path)
    except Exception as error:  # the format's own error type is not public
        raise TransportError(
            "model-malformed", f"The model does not parse: {type(error).__name__}."
        ) from error
    found = {name: (str(t.dtype), t.shape) for name, t in tensors.items()}
    if found != expected:
        raise TransportError(
            "model-malformed",
            "The model does not hold the vectors of the task's adapter and algorithm.",
            expected=dict(expected),
            found=found,
        )
    if not all(np.isfinite(tensors[name]).all() for name in tensors.keys() - {"clip"}):
        raise TransportError("model-malformed", "The model has values that are not finite.")
    for tensor in tensors.values():
        tensor.flags.writeable = False
    return tensors
