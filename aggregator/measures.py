"""Reads the state of the service into its metrics, before a scrape.

What costs queries is read at most once in :data:`CACHED_S`, what walks a folder at most once in
:data:`SIZES_CACHED_S`. A task that has spent its budget leaves :data:`ENDED_SHOWN_S` after its last
charge, so that the number of series does not grow with the tasks that there ever were.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args

from aggregator import disk
from aggregator.cohorts.driver import Driver
from aggregator.cohorts.drop_outs import NOT_DEALING_MIN
from aggregator.cohorts.faults import MISSED
from aggregator.cohorts.progress import progress_of
from aggregator.core import Core
from aggregator.ledger.log import Ledger
from aggregator.logs import get_logger
from aggregator.metrics import Samples
from aggregator.store import measures as stored
from aggregator.store.database import Connection
from aggregator.store.measures import TaskNow
from aggregator.tasks import Task, Tasks
from aggregator.tls import Tls
from aggregator.views import TaskState
from dp.accounting.statements import Unit
from secagg.manifest import Manifest

_log = get_logger("measures")
CACHED_S = 1.0
SIZES_CACHED_S = 60.0
_READ_S = 5.0  # Prometheus gives up after 10
ENDED_SHOWN_S = 7 * 86_400.0


class Measures:
    """Of one replica."""

    def __init__(
        self, core: Core, tasks: Tasks, driver: Driver, ledger: Ledger, tls: Tls | None
    ) -> None:
        self._core = core
        self._tls = tls
        self._tasks = tasks
        self._driver = driver
        self._ledger = ledger
        self._reading = asyncio.Lock()
        self._read_at = -CACHED_S
        self._walked_at = -SIZES_CACHED_S
        self._blob_bytes = 0
        self._left: set[str] = set()  # tasks that are shown no longer

    async def page(self, ready: Callable[[], Awaitable[bool]], *, started: bool = True) -> bytes:
        """All metrics in Prometheus' text format. Without a database it has what the process
        counts, and that the replica is not ready; so too before it has started, and from its stop
        on."""
        core = self._core
        async with self._reading:
            if time.monotonic() - self._read_at >= CACHED_S:
                samples = await self._from_database() if started else Samples()
                await self._from_disk(samples)
                samples.put("secagg_ready", float(await ready()))
                if self._tls is not None:
                    samples.put("secagg_tls_left_seconds", self._tls.left_s)
                    samples.put("secagg_tls_renewal_failed", self._tls.failed is not None)
                core.metrics.stored.show(samples)
                self._read_at = time.monotonic()
        return core.metrics.render()

    async def _from_database(self) -> Samples:
        """Nothing if it cannot be read: no value of before passes for one of now."""
        samples = Samples()
        try:
            async with asyncio.timeout(_READ_S), self._core.database.read() as connection:
                shown = await self._budgets(connection, samples)
                await self._cohorts(connection, samples, shown)
                await self._devices(connection, samples, shown)
                await self._records(connection, samples)
        except Exception:
            self._core.metrics.scrape_failures.inc()
            _log.exception("scrape-failed")
            return Samples()
        return samples

    # -- tasks ------------------------------------------------------------------------------

    async def _budgets(self, connection: Connection, samples: Samples) -> set[str]:
        """Budgets and releases; returns the names of the tasks that are shown."""
        now = self._core.clock()
        shown: set[str] = set()
        for state in get_args(TaskState):
            samples.put("secagg_tasks", 0, state)
        for task in await stored.tasks_now(connection):
            samples.add("secagg_tasks", 1, task.state)
            if task.state == "finished" and now - task.changed_at > ENDED_SHOWN_S:
                self._forget(task.task)
                continue
            shown.add(task.task)
            self._budget(samples, task, await self._tasks.get(task.task), now)
        return shown

    def _budget(self, samples: Samples, now: TaskNow, task: Task, now_s: float) -> None:
        name, budget = now.task, task.manifest.budget
        left = 0 if now.state == "finished" else budget.releases_max - now.charges
        samples.put("secagg_task_open", now.state == "open", name)
        samples.put("secagg_charges", now.charges, name)
        samples.put("secagg_charges_left", left, name)
        samples.put("secagg_release_age_seconds", max(0.0, now_s - now.opened_at), name)
        for unit, epsilon in epsilon_spent(task.manifest, now).items():
            samples.put("secagg_epsilon", epsilon, name, unit)
            if budget.max_epsilon is not None:
                rest = max(0.0, budget.max_epsilon - epsilon)
                samples.put("secagg_epsilon_left", rest, name, unit)

    def _forget(self, task: str) -> None:
        if task not in self._left:
            self._left.add(task)
            self._core.metrics.forget_task(task)

    # -- cohorts and devices ----------------------------------------------------------------

    async def _cohorts(self, connection: Connection, samples: Samples, shown: set[str]) -> None:
        found = await stored.open_cohorts(connection)
        samples.put("secagg_open_cohorts", len(found))
        now = self._core.clock()
        for cohort in found:
            labels = (cohort.task, cohort.phase)
            samples.put("secagg_cohort_devices", cohort.size, *labels)
            live = self._driver.live.get(cohort.cohort)
            if live is None:
                continue  # formed or taken up this moment
            at = progress_of(live.cohort)
            samples.put("secagg_cohort_devices_due", at.due - at.done, *labels)
            samples.put("secagg_cohort_phase_age_seconds", max(0.0, now - at.since_s), *labels)
            samples.put("secagg_cohort_stuck", at.is_stuck(now), *labels)
            if math.isfinite(at.deadline_s):
                samples.put("secagg_cohort_deadline_seconds", at.deadline_s - now, *labels)
        for task in shown:  # a counter that begins at 1 has not risen, to Prometheus
            samples.put("secagg_cohorts", 0, task, "released", "")
            for reason, step in MISSED.items():
                samples.put("secagg_cohorts", 0, task, "aborted", reason)
                samples.put("secagg_drop_outs", 0, task, step)
            for fate in ("survived", "dropped"):
                samples.put("secagg_devices", 0, task, fate)
        for ended in await stored.ended(connection):
            if ended.task in shown:
                how = (ended.outcome, ended.reason or "")
                samples.put("secagg_cohorts", ended.cohorts, ended.task, *how)
                lost = ended.devices - ended.survived
                samples.add("secagg_devices", ended.survived, ended.task, "survived")
                samples.add("secagg_devices", lost, ended.task, "dropped")
        for task, step, devices in await stored.lost(connection):
            if task in shown:
                samples.put("secagg_drop_outs", devices, task, step)

    async def _devices(self, connection: Connection, samples: Samples, shown: set[str]) -> None:
        waiting = await stored.waiting(connection, self._core.clock())
        idle = await stored.counts_not_dealing(connection, NOT_DEALING_MIN)
        for task in shown:
            samples.put("secagg_waiting_devices", waiting.get(task, 0), task)
            samples.put("secagg_devices_not_dealing", idle.get(task, 0), task)

    # -- the service ------------------------------------------------------------------------

    async def _records(self, connection: Connection, samples: Samples) -> None:
        size = await stored.ledger_size(connection)
        samples.put("secagg_ledger_records", size)
        samples.put("secagg_database_bytes", await stored.database_bytes(connection))
        now = self._core.clock()
        for witness in self._ledger.witnesses(size):
            samples.put("secagg_witness_lag_records", witness.lag, witness.name)
            if witness.answered_at is not None:
                age = max(0.0, now - witness.answered_at)
                samples.put("secagg_witness_answer_age_seconds", age, witness.name)

    async def _from_disk(self, samples: Samples) -> None:
        settings = self._core.settings
        if settings.blob_url is None:  # an object store has metrics of its own
            if time.monotonic() - self._walked_at >= SIZES_CACHED_S:
                self._blob_bytes = await self._core.ask_blobs(_bytes_in, settings.blobs_path)
                self._walked_at = time.monotonic()
            samples.put("secagg_blob_bytes", self._blob_bytes)
        for name, folder in disk.places(settings).items():
            try:
                usage = await asyncio.to_thread(shutil.disk_usage, folder)
            except OSError:  # /readyz says what is wrong with it
                continue
            samples.put("secagg_disk_free_bytes", usage.free, name)
            samples.put("secagg_disk_mark_bytes", settings.disk_free_min, name)
            samples.put("secagg_disk_size_bytes", usage.total, name)


def epsilon_spent(manifest: Manifest, now: TaskNow) -> dict[Unit, float]:
    """Unit that the task protects -> what its last record says of it, unamplified; 0 before the
    first charge. Nothing without noise."""
    spent: dict[Unit, float] = {}
    if manifest.example_privacy is not None:
        spent[manifest.example_privacy.protects] = 0.0
    if manifest.device_privacy is not None:
        spent["device"] = 0.0
    for line in () if now.charge is None else now.charge.privacy:
        if not line.amplified:
            spent[line.unit] = max(spent.get(line.unit, 0.0), line.epsilon)
    return spent


def _bytes_in(folder: Path) -> int:
    """Of all files beneath a folder; one that goes meanwhile counts as nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total
