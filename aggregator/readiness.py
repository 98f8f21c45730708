"""Whether this replica should get requests, and if not, why: what ``/readyz`` says."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from aggregator.blob_owner import demand_same_blobs
from aggregator.core import Core
from aggregator.disk import full
from aggregator.errors import DatabaseAway
from aggregator.keys import SEALING, load_without_sealing
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from aggregator.store import identity, migrating
from aggregator.tls import Tls
from secagg.errors import ConfigurationError, SecaggError

_log = get_logger("readiness")
_DATABASE_S = 2.0
_BLOBS_S = 2.0
_KEPT_S = 1.0  # what an object store answered


@dataclass(frozen=True)
class NotReady:
    """``reason``: a stable word. ``detail``: for the operator, with the way out. ``logged``: the
    log has it already."""

    reason: str
    detail: str
    logged: bool = False


class Readiness:
    """Looks at one replica that has started. However many ask, one look is under way at a time.
    A reason is logged when it comes, and the end of the last."""

    def __init__(self, core: Core, ledger: Ledger, tls: Tls | None) -> None:
        self._core = core
        self._ledger = ledger
        self._tls = tls
        self._looking: asyncio.Task[NotReady | None] | None = None
        self._blobs_asked: asyncio.Task[NotReady | None] | None = None
        self._asked_until = 0.0
        self._reason: str | None = None

    async def look(self) -> NotReady | None:
        """What keeps the replica from serving; None: nothing."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="readiness")
        return await asyncio.shield(self._looking)

    async def _look(self) -> NotReady | None:
        core = self._core
        found = (
            await _database(core)
            or await self._blobs()
            or await core.ask_blobs(_disk, core)
            or await asyncio.to_thread(_keys, core)
            or await _sealing(core)
            or await asyncio.to_thread(_ledger, self._ledger.folder)
            or self._certificate()
        )
        reason = None if found is None else found.reason
        if reason != self._reason:
            if found is None:
                _log.warning("ready", after=self._reason)
            elif not found.logged:
                _log.warning("not-ready", reason=found.reason, detail=found.detail)
            self._reason = reason
        return found

    def warnings(self) -> list[NotReady]:
        """What is wrong, and does not keep the replica from serving yet."""
        failed = None if self._tls is None else self._tls.failed
        return [] if failed is None else [NotReady(failed.reason, str(failed), logged=True)]

    def _certificate(self) -> NotReady | None:
        if self._tls is None or self._tls.left_s > 0:
            return None
        return NotReady(
            "tls-expired",
            f"The certificate ended {-self._tls.left_s:.0f} s ago, and no caller takes it. Renew "
            "it; the service takes a new one without a restart.",
        )

    async def _blobs(self) -> NotReady | None:
        """A store that hangs is not asked again until it has answered or failed."""
        asked = self._blobs_asked
        if asked is None or (asked.done() and time.monotonic() >= self._asked_until):
            asked = self._blobs_asked = asyncio.create_task(self._ask(), name="readiness-blobs")
        done, _ = await asyncio.wait({asked}, timeout=_BLOBS_S)
        if not done:
            return NotReady("blobs-away", "The store of models and vectors did not answer in time.")
        return asked.result()

    async def _ask(self) -> NotReady | None:
        core, found = self._core, None
        try:
            await core.ask_blobs(core.blobs.demand_answer)
            await demand_same_blobs(core)
        except ConfigurationError as error:
            reason = "blobs-away" if error.reason == "blobs-unreachable" else error.reason
            found = NotReady(reason, str(error))
        except OSError as error:
            found = NotReady("blobs-away", str(error))
        if core.settings.blob_url is not None:  # a look at a folder costs nothing
            self._asked_until = time.monotonic() + _KEPT_S
        return found


async def _database(core: Core) -> NotReady | None:
    try:
        async with asyncio.timeout(_DATABASE_S):
            found = await core.database.answers()
    except TimeoutError:
        return NotReady("database-away", f"{core.database.address} did not answer in time.")
    except DatabaseAway as error:
        return NotReady("database-away", str(error), logged=True)
    except Exception as error:  # it answers, and nothing that is of use
        _log.exception("database-away")
        return NotReady(
            "database-away",
            f"The database failed: {type(error).__name__}. The log has the cause.",
            logged=True,
        )
    if found == migrating.of_code():
        return None
    return NotReady(
        "schema-differs",
        f"The database has schema {found or 'none'}, and this software works with "
        f"{migrating.of_code()}. Stop all replicas, run `secagg db upgrade` of this "
        "software, or start the software of that schema.",
    )


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
    names = ("task.key", "ledger.key", SEALING)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:  # reading them would draw new ones
        return NotReady("keys-unusable", f"{folder} lacks {', '.join(missing)}: restore it.")
    try:
        found = load_without_sealing(folder)
    except (SecaggError, OSError) as error:
        return NotReady("keys-unusable", str(error))
    for name in ("task", "ledger"):
        if getattr(found, name).reveal() != getattr(core.keys, name).reveal():
            return NotReady(
                "keys-unusable",
                f"{folder / name}.key is not the key that this replica started with: restore it.",
            )
    lost = set(core.keys.cells.ids) - set(found.cells.ids)
    if lost:
        return NotReady(
            "keys-unusable",
            f"{folder / SEALING} lacks keys that this replica started with, by their ids: "
            f"{', '.join(sorted(lost))}. Restore it.",
        )
    return None


async def _sealing(core: Core) -> NotReady | None:
    """Another replica may seal by now with a key that this one was started without."""
    noted = (await identity.read(core.database)).get(identity.SEALING_KEYS, "").split()
    lacking = [each for each in noted if each not in core.keys.cells.ids]
    if not lacking:
        return None
    return NotReady(
        "keys-unusable",
        f"The database has cells under keys that this replica was started without, by their ids: "
        f"{', '.join(lacking)}. Start it anew; {core.settings.keys_path / SEALING} must have them.",
    )


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
