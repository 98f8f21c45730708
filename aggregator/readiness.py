"""Whether this replica should get requests, and if not, why: what ``/readyz`` says."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from aggregator.core import Core
from aggregator.disk import full
from aggregator.keys import load_keys
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from secagg.errors import SecaggError

_log = get_logger("readiness")
_DATABASE_S = 2.0


@dataclass(frozen=True)
class NotReady:
    """``reason``: a stable word. ``detail``: for the operator, with the way out."""

    reason: str
    detail: str


async def look(core: Core, ledger: Ledger) -> NotReady | None:
    """What keeps a replica that has started from serving; None: nothing. Each is logged."""
    found = (
        await _database(core)
        or await _blobs(core)
        or await asyncio.to_thread(_disk, core)
        or await asyncio.to_thread(_keys, core)
        or await asyncio.to_thread(_ledger, ledger.folder)
    )
    if found is not None:
        _log.warning("not-ready", reason=found.reason, detail=found.detail)
    return found


async def _database(core: Core) -> NotReady | None:
    try:
        async with asyncio.timeout(_DATABASE_S):
            await core.database.answers()
    except Exception as error:  # the driver's own, of many kinds
        _log.exception("database-away")
        return NotReady(
            "database-away",
            f"The database did not answer: {type(error).__name__}. The log has the cause.",
        )
    return None


async def _blobs(core: Core) -> NotReady | None:
    try:
        async with asyncio.timeout(_DATABASE_S):
            await asyncio.to_thread(core.blobs.demand_answer)
    except TimeoutError:
        return NotReady("blobs-away", "The object store of blob_url did not answer in time.")
    except SecaggError as error:
        return NotReady("blobs-away", str(error))
    return None


def _disk(core: Core) -> NotReady | None:
    found = full(core.settings)
    if found is None:
        return None
    return NotReady(
        "disk-low",
        f"{found.free_bytes} bytes are free in {found.folder}; at least {found.free_min} are "
        "needed (disk_free_min). No cohort is formed or charged until space is free.",
    )


def _keys(core: Core) -> NotReady | None:
    folder = core.settings.keys_path
    names = ("task.key", "ledger.key", "sealing.keys")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:  # load_keys would draw new ones
        return NotReady("keys-unusable", f"{folder} lacks {', '.join(missing)}: restore it.")
    try:
        found = load_keys(folder)
    except (SecaggError, OSError) as error:
        return NotReady("keys-unusable", str(error))
    for name in ("task", "ledger"):
        if getattr(found, name).reveal() != getattr(core.keys, name).reveal():
            return NotReady(
                "keys-unusable",
                f"{folder / name}.key is not the key that this replica started with: restore it.",
            )
    return None


def _ledger(folder: Path) -> NotReady | None:
    try:
        with (folder / "checkpoint").open("rb") as file:
            content = file.read(1)
        if content and os.access(folder, os.W_OK):
            return None
        found = "the folder cannot be written" if content else "it is empty"
    except OSError as error:
        found = error.strerror or str(error)
    return NotReady(
        "ledger-unusable",
        f"{folder / 'checkpoint'} is not usable: {found}. A restart renders the folder anew.",
    )
