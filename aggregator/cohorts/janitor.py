"""Removes what nobody can need any more: old mail, dead sessions, orphaned files.

Mail stays for ``mail_retention_s`` after a cohort's end, since a device that was away still wants
its receipt. Uploads and partial sums of cohorts that are no longer open are left-overs of a crash
between the terminal commit and the removal. Of each task's models the newest 65 stay: a cohort may
admit so many versions, deltas are told from 32 of them, and a copy of the database names them.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from aggregator.blob_owner import demand_same_blobs
from aggregator.cohorts.actor import UPLOADS
from aggregator.cohorts.adding import SUMS
from aggregator.cohorts.drop_outs import NOT_DEALING_KEPT_S
from aggregator.cohorts.standing import forget_old
from aggregator.cohorts.uploads import LEFT
from aggregator.core import Core
from aggregator.logs import get_logger
from aggregator.store import cohorts, drop_outs, models, refusals, sessions, tasks
from secagg.files.folders import remove_files

_log = get_logger("janitor")
_PERIOD_S = 60.0
_BEFORE = re.compile("[0-9]+")
_COHORT = re.compile("[0-9a-f]{64}")  # only our own are removed from a folder that was named


class Janitor:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="janitor")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:
                _log.exception("sweep-failed")
            await asyncio.sleep(_PERIOD_S)

    async def sweep(self) -> None:
        await demand_same_blobs(self._core)
        now = self._core.clock()
        # Listed before the query: a cohort that opens meanwhile is not in the list.
        folders = await self._core.ask_blobs(self._folders)
        before = await asyncio.to_thread(self._folders_of_before)
        async with self._core.database.write() as connection:
            await sessions.forget_old(connection, now - self._core.settings.mail_retention_s)
            await forget_old(connection, now)
            await refusals.forget_old(connection, now)
            await drop_outs.forget_old(connection, now - NOT_DEALING_KEPT_S)
            open_now = await cohorts.open_now(connection)
        await self._forget_models()
        await self._core.database.checkpoint()
        for folder, names in folders:
            if folder.rpartition("/")[2] not in open_now:
                await self._core.ask_blobs(self._core.blobs.clear, folder, names)
        for place in before:
            await asyncio.to_thread(remove_files, place, _BEFORE)

    async def _forget_models(self) -> None:
        old = await tasks.old_versions(self._core.database)
        if old.versions:
            blobs = self._core.blobs
            await self._core.ask_blobs(models.forget, blobs, old.models, old.optimisers)
            async with self._core.database.write() as connection:
                await tasks.forget_versions(connection, old)

    def _folders(self) -> list[tuple[str, re.Pattern[str]]]:
        """Folders that are named as a cohort's, and the names of the blobs that are ours there."""
        return [
            (f"{root}/{name}", names)
            for root, names in ((UPLOADS, LEFT), ("partial", SUMS))
            for name in self._core.blobs.folders(root)
            if _COHORT.fullmatch(name)
        ]

    def _folders_of_before(self) -> list[Path]:
        """Where an older version had its uploads."""
        root = self._core.settings.data_dir / "uploads"
        found = root.iterdir() if root.is_dir() else ()
        return [folder for folder in found if _COHORT.fullmatch(folder.name)]
