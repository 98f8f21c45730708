"""From an admitted offer to a journalled contribution, and when the device may report in.

Where a public slot is set, nothing that the aggregator can see depends on the secret batch: the
report-in time is computed from public times before the contributor starts, is a whole slot away by
the device's own steady clock whatever the aggregator's says, and a contributor that fails or is
late is replaced by zeros, to which the noise is added.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from client_sdk.contribution import (
    Contributor,
    TrainingJob,
    check_contributor,
    check_memory,
)
from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.events import Event
from client_sdk.failures import TrainingFailure
from client_sdk.payload import beyond_clip, hides_failures, prepared, zero_contribution
from client_sdk.rounds.checkin import CheckIn
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.examples_told import ExamplesTold
from client_sdk.rounds.failing import FailingTasks
from client_sdk.rounds.progress import Progress
from client_sdk.rounds.scaffold_control import DeviceControl, settle
from client_sdk.rounds.schedule import part_at
from client_sdk.state.journal import Contribution
from client_sdk.state.places import KnownPlaces, KnownUnits
from client_sdk.threads import finish_in_thread, start_in_thread
from client_sdk.training.dataset import LeftOut, reasons_of
from dp.contracts.algorithms.registry import has_control
from dp.schedule import period_of, schedule_of
from secagg.manifest import Manifest


def report_at(checkin: CheckIn, now_s: float | None = None) -> float | None:
    """Server's time at which this device reports in; None: when it is ready.

    The first whole multiple of ``report_slot_s`` after the version opened that is at least a whole
    slot away, so two slots away at most: a function of public times alone, the same for a device
    that is ready. An aggregator that moves ``opened_at`` chooses among those; it shortens no slot.

    Args:
        now_s: the server's time at which training may start; None: that of the offer.
    """
    slot_s = checkin.manifest.report_slot_s
    if slot_s <= 0:
        return None
    now_s = checkin.offer.now if now_s is None else now_s
    opened_at = min(checkin.offer.model.opened_at, now_s)
    return opened_at + math.ceil((now_s - opened_at) / slot_s + 1) * slot_s


def version_of(contribution: Contribution, checkin: CheckIn) -> int:
    """The model version that a contribution was trained from."""
    if contribution.model_digest == checkin.offer.model.digest:
        return checkin.offer.model.version
    return contribution.model_version


class Training:
    """Runs one contributor, one call at a time, and journals what it returns."""

    def __init__(self, device: RunningDevice, contributor: Contributor) -> None:
        self._device = device
        self._contributor = contributor
        self.told = ExamplesTold()
        self.failures: list[TrainingFailure] = []
        self._running: asyncio.Future[Mapping[str, np.ndarray]] | None = None
        self._stop = threading.Event()

    async def contribution(self, checkin: CheckIn) -> Contribution:
        """The journalled contribution for this offer, computed now unless it is there already.

        Raises:
            PolicyRefusal: ``local-noise-undeclared``, ``schedule-undeclared``,
                ``units-undeclared``, ``memory-undeclared``, ``memory-too-large``, or the
                contributor's ``TaskRefusal``.
            ContributionError: the contributor failed where its failure may be known.
            LedgerRefusal: SCAFFOLD: the ledger's word on an earlier release does not verify.
        """
        device = self._device
        check_contributor(checkin.manifest, self._contributor)
        check_memory(checkin.manifest, self._contributor, device.policy.max_memory_bytes)
        if has_control(checkin.manifest):
            await self._settle(checkin)
        report_s = self._report_at(checkin)
        return await self._ready(checkin, report_s)

    async def _ready(self, checkin: CheckIn, report_s: float | None) -> Contribution:
        """The contribution, at the time of the report.

        With a slot it is journalled then and not before: a pause, a stop or a kill leaves as little
        of what is ready as of training that is at work. Else what is small, and so ready in time,
        would be reported and what is large drawn anew: whether a device reports would show its
        batch, and batches would have another distribution.
        """
        device, task = self._device, checkin.manifest.task
        journal = device.journal
        contribution = self.reusable(checkin)
        new = contribution is None
        if contribution is not None:
            self.recall(contribution)
            version = version_of(contribution, checkin)
            failed = {} if contribution.failed is None else {"failed": contribution.failed}
            shown = failed | _shown(contribution)
            await device.emit("trained", task, version=version, reused=True, **shown)
        else:
            started = device.time.steady()
            await device.deliver(Event("training", task, detail=_terms(checkin)))
            progress = Progress(device, "training", task)
            contribution = await progress.during(self._compute(checkin, report_s, progress))
            told = await self._tell_examples(checkin.manifest)
            contribution = told.stored_in(contribution)
            if report_s is None:
                await finish_in_thread(journal.save_contribution, contribution)
            await self._note(task, contribution.failure)
            await device.emit(
                "trained",
                task,
                version=checkin.offer.model.version,
                reused=False,
                failed=contribution.failed,
                seconds=round(device.time.steady() - started, 3),
                **_shown(contribution),
            )
        if report_s is not None:
            await device.sleep(max(0.0, report_s - device.time.steady()))
            if new:
                await finish_in_thread(journal.save_contribution, contribution)
        return contribution

    async def settled(self) -> None:
        """Wait for a contributor that was told to end, for as long as a stop may take."""
        if self._running is not None:
            await asyncio.wait({self._running}, timeout=self._device.settings.stop_wait_s)

    def _report_at(self, checkin: CheckIn) -> float | None:
        """When to report in, by the steady clock: no later word of the aggregator moves it."""
        time = self._device.time
        now_s = time.now()
        report_s = report_at(checkin, now_s)
        return None if report_s is None else time.steady() + (report_s - now_s)

    def recall(self, contribution: Contribution) -> None:
        """Count what was told of a contribution of an earlier process or cohort."""
        self.told.add(ExamplesTold.of_contribution(contribution))
        if contribution.failure is not None and contribution.failure not in self.failures:
            self.failures.append(contribution.failure)

    async def _note(self, task: str, failure: TrainingFailure | None) -> None:
        """Tell the app of a training that failed, and count it; one that succeeds ends the row."""
        failing = FailingTasks(self._device.journal)
        if failure is None:
            await finish_in_thread(failing.clear, task)
        else:
            self.failures.append(failure)
            await finish_in_thread(failing.note, task, failure)

    @property
    def left_out(self) -> dict[int, LeftOut]:
        """Of all jobs so far, by place."""
        return self.told.left_out

    async def _tell_examples(self, manifest: Manifest) -> ExamplesTold:
        """Tell the device's user, and nobody else, of examples that counted as zero or were cut."""
        task = manifest.task
        found = ExamplesTold.of_contributor(self._contributor).with_turnless(manifest)
        new = [one for index, one in found.left_out.items() if index not in self.told.left_out]
        new_cut = [one for index, one in found.cut.items() if index not in self.told.cut]
        if found.owned > self.told.owned:
            await self._device.emit("units-unprotected", task, examples=found.owned)
        self.told.add(found)
        if new:
            await self._device.emit(
                "examples-left-out",
                task,
                examples=len(self.left_out),
                reasons=reasons_of(self.left_out.values()),
                first=str(new[0]),
            )
        if new_cut:
            await self._device.emit(
                "examples-cut", task, examples=len(self.told.cut), first=str(new_cut[0])
            )
        return found

    def reusable(self, checkin: CheckIn) -> Contribution | None:
        """The journalled contribution, if it is for this offer and reached no masking yet.

        One that has may be in a sum already, whatever the aggregator says of that cohort's end: in
        a second sum, over other devices, the difference of both would show it. A buffer (FedBuff)
        also takes one of an older version within its bound. With a schedule it is of the part that
        is next.
        """
        journal = self._device.journal
        contribution = journal.load_contribution()
        if contribution is None:
            return None
        served = (
            self._device.account.served(contribution.name) is not None
            or self._device.gave(checkin.manifest, contribution.model_digest) is not None
        )
        oldest = checkin.offer.model.version - checkin.manifest.cohort.versions_back
        present = contribution.model_digest == checkin.offer.model.digest
        admitted = oldest <= contribution.model_version < checkin.offer.model.version
        found = (contribution.manifest_digest, contribution.count)
        fits = found == (checkin.digest, checkin.count) and (present or admitted)
        if fits and not served:
            return contribution
        journal.drop_contribution()
        return None

    async def _compute(
        self, checkin: CheckIn, report_s: float | None, progress: Progress
    ) -> Contribution:
        device, manifest, failed = self._device, checkin.manifest, None
        digest, version = checkin.offer.model.digest, checkin.offer.model.version
        try:
            values = prepared(manifest, await self._call(checkin, report_s, progress), checkin.clip)
            failure = _told_by(self._contributor, version)
            for segment, norm in beyond_clip(manifest, values):
                await device.emit(
                    "values-shortened",
                    manifest.task,
                    segment=segment.name,
                    norm=norm,
                    clip=segment.clip,
                )
        except ContributionError as error:
            # A refusal of the task says nothing about the data.
            if isinstance(error, TaskRefusal) or not hides_failures(manifest):
                await self._note(manifest.task, TrainingFailure.of(error, version, "nothing"))
                raise
            values, failed = zero_contribution(manifest), str(error)
            failure = TrainingFailure.of(error, version, "zeros")
        contribution = Contribution.of(
            checkin.digest, digest, values, failed, checkin.control, version, checkin.count
        )
        return msgspec.structs.replace(contribution, failure=failure)

    async def _call(
        self, checkin: CheckIn, report_s: float | None, progress: Progress
    ) -> Mapping[str, np.ndarray]:
        """Call the contributor in its thread, within the time that slot and policy leave."""
        device = self._device
        limits = [math.inf if (most := device.policy.max_training_s) is None else most]
        if device.usage is not None:
            limits.append(device.usage.training_left_s())
        if report_s is not None:
            left_s = report_s - device.time.steady()
            limits.append(left_s - device.settings.slot_reserve_s)
        limit_s = max(0.0, min(limits))
        deadline_s = None if math.isinf(limit_s) else limit_s
        try:
            async with asyncio.timeout(deadline_s):
                await self._previous()
                async with self._counted(checkin.manifest.task):
                    return await self._start(checkin, deadline_s, progress)
        except TimeoutError as error:
            self._stop.set()
            raise ContributionError(
                "contribution-late",
                "The contributor did not finish in time.",
                expected=f"{limit_s:.1f} s",
                remedy="Use fewer examples or steps, or a longer report slot.",
            ) from error

    def _counted(self, task: str) -> contextlib.AbstractAsyncContextManager[None]:
        usage = self._device.usage
        return contextlib.nullcontext() if usage is None else usage.training(task)

    async def _previous(self) -> None:
        """Wait for a call that ran late in an earlier round: a trainer is used by one at a time."""
        if self._running is not None and not self._running.done():
            self._stop.set()
            await asyncio.wait({self._running})

    async def _start(
        self, checkin: CheckIn, deadline_s: float | None, progress: Progress
    ) -> Mapping[str, np.ndarray]:
        self._stop = threading.Event()
        job = TrainingJob(
            manifest=checkin.manifest,
            version=checkin.offer.model.version,
            vector=checkin.vector,
            releases=checkin.offer.releases,
            deadline_s=deadline_s,
            correction=self._correction(checkin),
            clip=checkin.clip,
            part=part_at(checkin.manifest, checkin.count),
            known=self._known_places(checkin),
            known_units=self._known_units(checkin),
            stop=self._stop,
            progress=progress.note,
        )

        def work() -> Mapping[str, np.ndarray]:
            try:
                return self._contributor.contribute(job)
            except ContributionError:
                raise
            except BaseException as error:  # a panic of a compiled library is not an Exception
                where = traceback.extract_tb(error.__traceback__)[-1]
                raise ContributionError(
                    "contribution-failed",
                    f"The contributor failed: {type(error).__name__}: {error}.",
                    remedy=f"Look at {Path(where.filename).name}, line {where.lineno}.",
                ) from error

        self._running = start_in_thread(work)
        self._running.add_done_callback(_look)
        try:
            return await asyncio.shield(self._running)
        finally:
            self._stop.set()

    async def _settle(self, checkin: CheckIn) -> None:
        device = self._device
        await settle(
            DeviceControl(device.journal, checkin.manifest, checkin.digest),
            device.ledger,
            task=checkin.manifest.task,
            manifest_digest=checkin.digest,
            identity_key=device.bundle.certificate.identity_key,
        )

    def _known_places(self, checkin: CheckIn) -> Callable[[Sequence[bytes]], None] | None:
        if checkin.count is None:
            return None
        return KnownPlaces(self._device.journal, schedule_of(checkin.manifest)).check

    def _known_units(
        self, checkin: CheckIn
    ) -> Callable[[Mapping[str, int], int], tuple[list[int], int]] | None:
        if checkin.count is None:
            return None
        return KnownUnits(self._device.journal, schedule_of(checkin.manifest)).places

    def _correction(self, checkin: CheckIn) -> np.ndarray | None:
        if checkin.control is None:
            return None
        state = DeviceControl(self._device.journal, checkin.manifest, checkin.digest)
        return state.correction(checkin.control)


def _told_by(contributor: object, version: int) -> TrainingFailure | None:
    """What a contributor says of its last job, where nothing of the examples is in its values."""
    failure = getattr(contributor, "failure", None)
    if not isinstance(failure, TrainingFailure):
        return None
    return msgspec.structs.replace(failure, version=version, given="zeros")


def _shown(contribution: Contribution) -> dict[str, Any]:
    return {} if contribution.failure is None else contribution.failure.shown()


def _terms(checkin: CheckIn) -> dict[str, object]:
    """What the app is told when training starts."""
    version, part = checkin.offer.model.version, part_at(checkin.manifest, checkin.count)
    if part is None:
        return {"version": version}
    return {"version": version, "part": part, "period": period_of(checkin.manifest)}


def _look(future: asyncio.Future[Any]) -> None:
    """Take note of a late call's error, so that asyncio does not report it as lost."""
    if not future.cancelled():
        future.exception()
