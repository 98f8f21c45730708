"""Work on the database of a service that does not run: what ``secagg db`` does."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from nacl.signing import SigningKey

from aggregator.blob_owner import check_blobs
from aggregator.keys import SEALING, Keys, load_keys, load_without_sealing
from aggregator.ledger.extension import demand_extension
from aggregator.settings.options import Settings
from aggregator.starting import DataFolder, demand_own_database, facts_of
from aggregator.store import cohorts, identity, migrating, resealing
from aggregator.store.blobs import Blobs, BlobStore
from aggregator.store.database import Database
from aggregator.store.objects import ObjectStore
from dp.tlog import notes
from dp.tlog.merkle import Tree
from secagg.errors import ConfigurationError


class Maintenance:
    """One database, for the length of a context."""

    def __init__(self, settings: Settings) -> None:
        """
        Raises:
            ConfigurationError: ``keys-missing`` or ``database-missing``, which a service would
                make.
        """
        keys = [settings.keys_path / name for name in ("task.key", "ledger.key")]
        self._demand("keys-missing", *keys)
        url = settings.database
        if url.get_backend_name() == "sqlite":
            self._demand("database-missing", Path(url.database or ""))
        self._settings = settings
        self._keys: Keys
        self._database: Database
        self._open(load_without_sealing(settings.keys_path))

    def _open(self, keys: Keys) -> None:
        self._keys = keys
        self._database = Database(self._settings.database, keys.cells)

    def _demand(self, reason: str, *files: Path) -> None:
        for file in files:
            if not file.exists():
                raise ConfigurationError(
                    reason,
                    f"There is no {file}.",
                    remedy="Give the settings of the service: --config or --data-dir, "
                    "SECAGG_KEYS_DIR and SECAGG_DATABASE_URL.",
                )

    async def __aenter__(self) -> Maintenance:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._database.close()

    async def check(self) -> dict[str, Any]:
        """Whether a service would start on this database and every sealed cell opens, also beside
        one that runs; writes nothing.

        Raises:
            CellRefused: ``cell-moved``.
            ConfigurationError: ``schema-newer``, ``schema-older``, and as
                :func:`aggregator.starting.demand_own_database`,
                :func:`aggregator.blob_owner.check_blobs` and
                :func:`aggregator.ledger.extension.demand_extension`.
        """
        found = await self._database.schema()
        migrating.demand_present(found)
        await self._demand_own()
        await check_blobs(self._database, self._settings, self._keys, self._blobs())
        folder, name = self._settings.data_dir / "ledger", self._settings.ledger_name
        await demand_extension(self._database, folder, name, self._keys.ledger, Tree())
        return {**self._found(found), "sealed_cells": await resealing.opened(self._database)}

    def _blobs(self) -> Blobs | None:
        """None: the first start makes the folder."""
        settings = self._settings
        if settings.blob_url is not None:
            return ObjectStore(settings.blob_url)
        return BlobStore(settings.blobs_path) if settings.blobs_path.is_dir() else None

    async def upgrade(self, target: str | None) -> dict[str, Any]:
        """Bring the schema up to a version; None: the newest.

        Raises:
            ConfigurationError: ``data-dir-in-use``, ``replicas-running``, ``keys-missing``; as
                ``Database.migrate`` and
                :func:`aggregator.starting.demand_own_database`.
        """
        await self._demand_sealing_key()
        return await self._moved(self._database.migrate, target or migrating.NEWEST)

    async def _demand_sealing_key(self) -> None:
        """A database that is not sealed yet may get its first key; another has one somewhere."""
        if self._keys.sealing:
            return
        if migrating.is_sealed(await self._database.schema()):
            self._demand("keys-missing", self._settings.keys_path / SEALING)
        await self._database.close()
        self._open(load_keys(self._settings.keys_path))

    async def downgrade(self, target: str) -> dict[str, Any]:
        """As :meth:`upgrade`, down.

        Raises:
            ConfigurationError: as :meth:`upgrade`; ``cohort-open``.
        """

        async def move(version: str) -> None:
            await self._demand_no_cohort()
            await self._database.migrate_down(version)

        return await self._moved(move, target)

    async def _demand_no_cohort(self) -> None:
        """An older service could not go on with a cohort of this one: it has other mail."""
        async with self._database.write() as connection:
            found = await cohorts.open_now(connection)
        if not found:
            return
        raise ConfigurationError(
            "cohort-open",
            "A cohort is under way, and older software cannot go on with it.",
            expected="no open cohort",
            found=", ".join(name[:16] for name in found),
            remedy="Start this version of the service again, pause or close its tasks (secagg task "
            "pause), wait until secagg task show names no open cohort, stop it and try again.",
        )

    async def reseal(self) -> dict[str, Any]:
        """Seal everything under the first key, so that the others may go.

        Raises:
            CellRefused: as :meth:`check`.
            ConfigurationError: as :meth:`check`; ``data-dir-in-use``, ``replicas-running``,
                ``keys-missing``.
        """
        self._demand("keys-missing", self._settings.keys_path / SEALING)
        async with self._alone():
            migrating.demand_present(await self._database.schema())
            await self._demand_own()
            count = await resealing.reseal(self._database)
            await identity.only_sealing_key(self._database, self._database.cells.sealing)
            await self._database.checkpoint()
            return {"sealing_key": self._database.cells.sealing, "resealed": count}

    async def _moved(self, move: Callable[[str], Awaitable[None]], target: str) -> dict[str, Any]:
        async with self._alone():
            await self._demand_own()
            await move(target)
            await self._database.checkpoint()
            return self._found(await self._database.schema())

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as held:
            if self._settings.data_dir.is_dir():  # else of a replica that ran elsewhere
                folder = DataFolder(self._settings.data_dir)
                folder.take()
                held.callback(folder.release)
            await self._database.demand_answer()
            if (presence := self._database.presence()) is not None:
                await held.enter_async_context(presence.alone())
            yield

    async def _demand_own(self) -> None:
        name = self._settings.ledger_name
        await demand_own_database(self._database, self._keys, name, enter=False)

    def _found(self, schema: str | None) -> dict[str, Any]:
        name = self._settings.ledger_name
        facts = facts_of(self._keys, name)
        ledger_public = bytes(SigningKey(self._keys.ledger.reveal()).verify_key)
        return {
            "schema": schema or "none",
            "schema_of_software": migrating.of_code(),
            "ledger_name": name,
            "task_key_fingerprint": facts["task-key"],
            "ledger_key_fingerprint": facts["ledger-key"],
            "task_key": self._keys.task_public.hex(),  # these two as `secagg enroll` prints them
            "ledger_verifier": notes.verifier_key(name, ledger_public),
        }
