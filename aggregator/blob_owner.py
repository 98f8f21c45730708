"""Whose blob store it is: a small blob that names the service, and that its database knows.

Two services in one store would remove each other's files, and replicas that each have a store of
their own would miss each other's. The first start puts the blob there, also for a database and a
folder of before.
"""

from __future__ import annotations

import asyncio
import functools
import secrets

from aggregator.core import Core
from aggregator.keys import Keys
from aggregator.settings.options import Settings
from aggregator.starting import fingerprint
from aggregator.store import identity
from aggregator.store.blobs import BlobMissing, Blobs
from aggregator.store.database import Database
from secagg.errors import ConfigurationError

NAME = "service"
_MAX = 200  # characters shown of what lies there


async def demand_own_blobs(core: Core) -> None:
    """
    Raises:
        ConfigurationError: ``blobs-of-another-service``, ``blobs-not-marked``.
        OSError: the store fails.
    """
    known = (await identity.read(core.database)).get(identity.BLOB_STORE)
    if known is None:
        own = fingerprint(core.keys.task_public)
        held = await core.ask_blobs(_held, core.blobs)
        _demand_unmarked(core.settings, own, held)
        mark = held or f"{own}-{secrets.token_hex(16)}"
        put = functools.partial(core.ask_blobs, core.blobs.put, NAME, mark.encode())
        known = await identity.enter_blob_store(core.database, mark, put)
    core.blob_store = known
    await demand_same_blobs(core)


async def demand_same_blobs(core: Core) -> None:
    """Whether the store is the one that this replica started with. Raises as
    :func:`demand_own_blobs`."""
    _demand_mark(core.settings, core.blob_store, await core.ask_blobs(_held, core.blobs))


async def check_blobs(
    database: Database, settings: Settings, keys: Keys, blobs: Blobs | None
) -> None:
    """Whether :func:`demand_own_blobs` would pass; writes nothing. ``blobs``: None if there is no
    folder yet. Raises as it does, and as ``Blobs.demand_answer``."""
    known = (await identity.read(database)).get(identity.BLOB_STORE)
    held = None
    if blobs is not None:
        await asyncio.to_thread(blobs.demand_answer)
        held = await asyncio.to_thread(_held, blobs)
    if known is None:
        _demand_unmarked(settings, fingerprint(keys.task_public), held)
    else:
        _demand_mark(settings, known, held)


def _demand_unmarked(settings: Settings, own: str, held: str | None) -> None:
    """Or marked by an earlier start that did not come to the database."""
    if held is not None and held.partition("-")[0] != own:
        raise ConfigurationError(
            "blobs-of-another-service",
            f"{_place(settings)} holds the blobs of another service.",
            expected=own,
            found=held,
            remedy="Name a folder or bucket of this service's own with SECAGG_BLOB_DIR or "
            f"SECAGG_BLOB_URL. If no other service uses it any more, remove its file {NAME}.",
        )


def _demand_mark(settings: Settings, known: str | None, held: str | None) -> None:
    if held == known:
        return
    raise ConfigurationError(
        "blobs-not-marked" if held is None else "blobs-of-another-service",
        f"{_place(settings)} is not the blob store that this service's database names.",
        expected=known,
        found=held or f"no file {NAME}",
        remedy="Name the folder or bucket that all replicas share with SECAGG_BLOB_DIR or "
        f"SECAGG_BLOB_URL. If it is this one, restored without its file {NAME}, write the expected "
        "text into that file.",
    )


def _held(blobs: Blobs) -> str | None:
    try:
        return blobs.get(NAME).decode("ascii", "replace").strip()[:_MAX]
    except BlobMissing:
        return None


def _place(settings: Settings) -> str:
    return settings.blob_url or f"The folder {settings.blobs_path}"
