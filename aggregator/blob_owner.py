"""Whose blob store it is: a small blob that names the service, and that its database knows.

Two services in one store would remove each other's files, and replicas that each have a store of
their own would miss each other's. The first start puts the blob there, also for a database and a
folder of before.
"""

from __future__ import annotations

import functools
import secrets

from aggregator.core import Core
from aggregator.settings.options import Settings
from aggregator.starting import fingerprint
from aggregator.store import identity
from aggregator.store.blobs import BlobMissing, Blobs
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
        if held is not None and held.partition("-")[0] != own:
            raise ConfigurationError(
                "blobs-of-another-service",
                f"{_place(core.settings)} holds the blobs of another service.",
                expected=own,
                found=held,
                remedy="Name a folder or bucket of this service's own with SECAGG_BLOB_DIR or "
                f"SECAGG_BLOB_URL. If no other service uses it any more, remove its file {NAME}.",
            )
        mark = held or f"{own}-{secrets.token_hex(16)}"
        put = functools.partial(core.ask_blobs, core.blobs.put, NAME, mark.encode())
        known = await identity.enter_blob_store(core.database, mark, put)
    core.blob_store = known
    await demand_same_blobs(core)


async def demand_same_blobs(core: Core) -> None:
    """Whether the store is the one that this replica started with. Raises as
    :func:`demand_own_blobs`."""
    held = await core.ask_blobs(_held, core.blobs)
    if held == core.blob_store:
        return
    raise ConfigurationError(
        "blobs-not-marked" if held is None else "blobs-of-another-service",
        f"{_place(core.settings)} is not the blob store that this service's database names.",
        expected=core.blob_store,
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
