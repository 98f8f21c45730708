"""One replica, wired: store, ledger, tasks, driver, access."""

from __future__ import annotations

import glob
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aggregator.access import DeviceAccess, OperatorAccess
from aggregator.audit import AuditLog
from aggregator.blob_owner import demand_own_blobs
from aggregator.cohorts.charging import Charging
from aggregator.cohorts.driver import Driver
from aggregator.cohorts.ending import Ending
from aggregator.cohorts.janitor import Janitor
from aggregator.cohorts.releasing import Releaser
from aggregator.cohorts.standing import Membership
from aggregator.cohorts.wakeups import Wakeups
from aggregator.cohorts.watch import Watch
from aggregator.compute.pools import compute_pool
from aggregator.core import Core
from aggregator.deltas import Deltas
from aggregator.errors import Kind, Refusal
from aggregator.folders import close_database, close_to_others
from aggregator.intake.callers import Callers
from aggregator.intake.open_requests import Intake
from aggregator.keys import load_keys, private_text
from aggregator.ledger.log import Ledger
from aggregator.measures import Measures
from aggregator.operator_tokens import OperatorTokens
from aggregator.partners import Partners
from aggregator.readiness import NotReady, Readiness
from aggregator.settings.options import TOKEN_LONG, Settings, demand_token
from aggregator.starting import LOCK, DataFolder, demand_own_database
from aggregator.store import replicas
from aggregator.store.blobs import Blobs, BlobStore
from aggregator.store.database import Database
from aggregator.store.objects import ObjectStore
from aggregator.tasks import Tasks
from aggregator.tls import tls_of
from secagg.errors import ConfigurationError
from secagg.files.folders import demand_own_folder, file_in_the_way

_MARKS = ("replica.id", "secagg.db")
_KEPT = (
    "blobs",
    "keys",
    "ledger",
    "uploads",
    "operator.token*",
    "replica.id.*",
    "secagg.db-*",
    LOCK,
)


def _demand_own(settings: Settings) -> None:
    """Raises: ConfigurationError: ``data-dir-taken``: other people's files lie in the folder."""
    named = (
        *(settings.config, settings.keys_path, settings.blobs_path, settings.database.database),
        *(settings.tls_certificate, settings.tls_key),
        *(settings.tls_client_ca, settings.admin_client_ca),
    )
    home = settings.data_dir.absolute()
    places = [Path(place).absolute() for place in named if place]
    inside = [place.relative_to(home).parts[0] for place in places if home in place.parents]
    kept = (*_KEPT, *(f"{glob.escape(name)}*" for name in inside))
    demand_own_folder(
        settings.data_dir, "folder of a service", _MARKS, kept, ConfigurationError, "data-dir-taken"
    )


def _make(folder: Path, setting: str, mode: int) -> None:
    """Raises: ConfigurationError: ``data-dir-unwritable``."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except (OSError, ValueError) as error:
        file = file_in_the_way(folder)
        why = f"{file} is a file" if file else getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(
            "data-dir-unwritable",
            f"The folder {folder} cannot be made: {why}.",
            remedy=f"Name a folder with {setting} that this user may write.",
        ) from error


def _blobs(settings: Settings) -> Blobs:
    if settings.blob_url is not None:
        return ObjectStore(settings.blob_url, settings.data_dir)
    _make(settings.blobs_path, "SECAGG_BLOB_DIR", 0o777)
    return BlobStore(settings.blobs_path)


class Service:
    """Build, then :meth:`start`; :meth:`close` stops as hard as a crash would, but tidily."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        _demand_own(settings)
        _make(settings.data_dir, "--data-dir or SECAGG_DATA_DIR", 0o700)
        _make(settings.keys_path, "SECAGG_KEYS_DIR", 0o700)
        close_to_others(settings.data_dir)
        if settings.database.get_backend_name() == "sqlite" and settings.database.database:
            close_database(Path(settings.database.database))
        self.tls = tls_of(settings, clock)
        self.audit = AuditLog(settings.audit_log, clock)
        self._folder = DataFolder(settings.data_dir)
        pool = ThreadPoolExecutor(settings.opening_threads, "unmasking")
        keys = load_keys(settings.keys_path)
        self.core = core = Core(
            settings=settings,
            keys=keys,
            database=Database(settings.database, keys.cells),
            blobs=_blobs(settings),
            clock=clock,
            pool=pool,
            compute=compute_pool(settings, pool),
            replica=private_text(settings.data_dir / "replica.id", lambda: secrets.token_hex(8)),
        )
        self._presence = core.database.presence()
        if settings.operator_token is not None:
            token = settings.operator_token.get_secret_value()
        else:
            path = settings.data_dir / "operator.token"
            token = private_text(path, lambda: secrets.token_urlsafe(32))
            demand_token(token, path)
        self.ledger = Ledger(core)
        self.partners = Partners(core, self.ledger)
        self.tasks = Tasks(core, self.ledger)
        self.membership = Membership(core, self.ledger)
        self.tokens = OperatorTokens(core, token, by_hand=settings.operator_token is not None)
        self.wakeups = Wakeups()
        charging = Charging(core, self.ledger)
        self.driver = Driver(
            core,
            self.tasks,
            charging,
            Releaser(core, self.ledger, charging),
            Ending(core, self.ledger, charging),
            self.wakeups,
        )
        self.watch = Watch(
            core,
            self.tasks,
            self.driver,
            (self.partners, self.tokens),
            self.ledger,
            self.wakeups,
        )
        self.measures = Measures(core, self.tasks, self.driver, self.ledger, self.tls)
        self.janitor = Janitor(core)
        self.deltas = Deltas(core)
        self.intake = Intake(settings)
        self.access = DeviceAccess(
            core.keys.task_public,
            self.partners,
            clock,
            settings.requests_per_s,
            settings.request_burst,
        )
        self.token_is_short = len(token) < TOKEN_LONG
        operator = OperatorAccess(self.tokens)
        self.callers = Callers(self.access, operator, self.intake, core.pseudonyms)
        self.readiness = Readiness(core, self.ledger, self.tls)
        self.ready = False
        self.draining = False

    async def start(self) -> None:
        """
        Raises:
            ConfigurationError: ``data-dir-in-use``; as ``Presence.start``, ``Database.prepare``,
                ``demand_own_database``, ``demand_own_blobs`` and ``Ledger.start``.
        """
        self._folder.take()
        try:
            await self._start()
        except BaseException:
            if self._presence is not None:
                await self._presence.close()
            self._folder.release()
            raise

    async def _start(self) -> None:
        core = self.core
        await core.ask_blobs(core.blobs.demand_answer)
        await core.database.demand_answer()
        if self._presence is not None:
            await self._presence.start()
        await core.database.demand_own_file()
        ledger_name = core.settings.ledger_name
        # Before the schema moves: a stranger's keys would seal cells and hash devices.
        await demand_own_database(core.database, core.keys, ledger_name, enter=False)
        await core.database.prepare()
        await demand_own_database(core.database, core.keys, ledger_name)
        await demand_own_blobs(core)
        async with core.database.write() as connection:
            await replicas.started(connection, core.replica, core.started_at)
        await core.compute.start()
        await self.partners.load()
        await self.tokens.load()
        await self.ledger.start()
        await self.watch.start()
        self.janitor.start()
        if self.tls is not None:
            self.tls.start()
        self.ready = True

    def drain(self) -> None:
        """Not ready from now on, for balancers to notice; all else goes on."""
        self.draining = True

    def end_waiting(self) -> None:
        """No longer ready: long polls end, so that a shutdown need not wait for them."""
        self.ready = False
        self.core.signals.notify_all()

    async def close(self) -> None:
        self.end_waiting()
        if self.tls is not None:
            await self.tls.close()
        async with self.core.database.quiet():
            await self.janitor.close()
            await self.driver.close()
            await self.ledger.close()
        await self.core.database.checkpoint()
        await self.core.compute.close()
        self.core.pool.shutdown(wait=True, cancel_futures=True)
        self.core.blob_pool.shutdown(wait=False, cancel_futures=True)
        if self._presence is not None:
            await self._presence.close()
        await self.core.database.close()
        self.audit.tell_left_out()
        self._folder.release()

    def demand_started(self) -> None:
        """Before the start has looked whose database it is nothing is read of it or done to it, and
        nothing from the stop on.

        Raises:
            Refusal: ``starting``.
        """
        if not self.ready:
            raise Refusal(
                Kind.BUSY,
                "starting",
                "The service has not started yet, or is being stopped.",
                remedy="Load the page again.",
                retry_after_s=1,
            )

    async def not_ready(self) -> NotReady | None:
        """Why this replica should get no requests; None: it should."""
        if self.draining:
            return NotReady("draining", "The service is being stopped.")
        if not self.ready:
            return NotReady("starting", "The service has not started yet, or has stopped.")
        return await self.readiness.look()
