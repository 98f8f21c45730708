"""A run: offer, check-in, contribution, exchange, round by round until the task ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from client_sdk.accounts.recovery import second_look_due
from client_sdk.errors import ContributionError, LedgerRefusal, PolicyRefusal
from client_sdk.ledger.evidence import Quarantine
from client_sdk.rounds.checkin import CheckIn, check_in, next_offer
from client_sdk.rounds.contributing import Training, version_of
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.exchange import exchange
from client_sdk.rounds.failing import FAILURES_MAX, FailingTasks
from client_sdk.rounds.faults import tell_fault
from client_sdk.rounds.missing_charges import recover_charges, recover_new
from client_sdk.rounds.pace import Pace
from client_sdk.rounds.participant import Outcome
from client_sdk.rounds.pending import finish_pending
from client_sdk.rounds.result import Tally
from client_sdk.rounds.schedule import part_at
from client_sdk.rounds.session import Session
from client_sdk.rounds.steering import Interrupted
from client_sdk.state.journal import Contribution
from client_sdk.state.models import forget_models
from secagg.http_api import Offer


async def take_part(
    device: RunningDevice, training: Training, task: str, rounds: int | None
) -> Tally:
    """Give until ``rounds`` releases hold this device's contribution, or the task ends.

    Raises:
        As :meth:`client_sdk.client.Client.run`.
    """
    return await Participation(device, training, task, rounds).run()


class Participation:
    """One run of one task."""

    def __init__(
        self, device: RunningDevice, training: Training, task: str, rounds: int | None
    ) -> None:
        self._device = device
        self._training = training
        self._task = task
        self._rounds = rounds
        self._tally = Tally(told=training.told, failures=training.failures)
        self._pace = Pace(device)
        self._failures = 0

    async def run(self) -> Tally:
        """As :func:`take_part`."""
        try:
            await self._device.steering.through(self._go_on, self._tell_pause)
        except Interrupted:
            self._tally.stopped = True
        except PolicyRefusal as refusal:
            self._tally.refusals.append(refusal)
            of_training = isinstance(refusal, ContributionError) and self._training.failures
            told = self._training.failures[-1].shown() if of_training else {}
            await self._device.emit(
                "refused", self._task, reason=refusal.reason, message=str(refusal), **told
            )
        return self._tally

    async def _tell_pause(self, kind: Literal["paused", "continued"]) -> None:
        await self._training.settled()
        await self._device.emit(kind, self._task)

    async def _go_on(self) -> None:
        """From wherever it is to the end of the run.

        Raises:
            Interrupted: the app wants it to stop, or to rest before it is called again.
            PolicyRefusal: it ends here.
        """
        device, task, tally = self._device, self._task, self._tally
        await device.steering.free(recover_new(device, task))
        await self._finish_pending()
        await _demand_no_quarantine(device, task)
        while self._wants_more():
            prepared = await self._prepared()
            if prepared is None:
                if tally.finished:
                    return
                continue
            outcome = await self._exchange(*prepared)
            if outcome.fault is not None:
                raise outcome.fault
            tally.add(outcome)
            if outcome.refusal is not None:
                raise outcome.refusal
            if self._wants_more():
                await device.steering.free(self._pace.after(outcome))

    def _wants_more(self) -> bool:
        return self._rounds is None or len(self._tally.releases) < self._rounds

    async def _finish_pending(self) -> None:
        """End the session of an earlier process."""
        pending = await finish_pending(self._device, self._task)
        if pending is not None and pending.task == self._task:
            if pending.fault is not None:
                raise pending.fault
            self._tally.add(pending)
            await self._device.steering.free(self._pace.after(pending))
        elif pending is not None and pending.evidence is not None:
            self._tally.evidence.append(pending.evidence)

    async def _prepared(self) -> tuple[CheckIn, Contribution] | None:
        """The next contribution and what it is for; None: not now, or the task is over.

        Raises:
            PolicyRefusal: the run ends here.
            Interrupted, LedgerRefusal, ContributionError, TransportError: as the run.
        """
        device, task, steering = self._device, self._task, self._device.steering
        FailingTasks(device.journal).check(task)
        waits = next_offer(device, task, self._pace.after_version, self._pace.until_s)
        offer = await steering.free(waits)
        if offer is None:
            self._tally.finished = True
            forget_models(device.journal.models)
            await device.emit("finished", task)
            return None
        device.time.hear(offer.now)
        try:
            found = await steering.free(self._admitted(offer), conditions=True)
        except LedgerRefusal as error:
            await tell_fault(device, task, error)
            raise
        except ContributionError as error:
            if isinstance(error, PolicyRefusal):
                raise
            self._failures += 1
            self._tally.aborted += 1
            told = self._training.failures[-1].shown() if self._training.failures else {}
            await device.emit("aborted", task, reason=error.reason, message=str(error), **told)
            if self._failures >= FAILURES_MAX:
                raise
            self._pace.wait_for_newer(offer.model.version)
            return None
        if found is not None:
            self._failures = 0
        return found

    async def _admitted(self, offer: Offer) -> tuple[CheckIn, Contribution] | None:
        """Check in and train; None where a newer model must come first."""
        device, task = self._device, self._task
        if second_look_due(device.journal, device.time.now()):
            await recover_charges(device, again=True)
        checkin = await check_in(device, task, offer)
        if device.gave(checkin.manifest, offer.model.digest) is not None:
            await device.emit("waiting", task, reason="model-given", version=offer.model.version)
            self._pace.wait_for_newer(offer.model.version)
            return None
        return checkin, await self._training.contribution(checkin)

    async def _exchange(self, checkin: CheckIn, contribution: Contribution) -> Outcome:
        device = self._device
        session = Session.begin(
            device.journal,
            device.bundle,
            checkin.offer.manifest,
            model_version=version_of(contribution, checkin),
            model_digest=contribution.model_digest,
            contribution=contribution.name,
            survivors_min=device.policy.min_cohort,
            partner_keys=device.partner_keys,
            lifetime_s=device.settings.advert_lifetime_s,
            clock=device.time.now,
        )
        return replace(
            await exchange(device, session),
            failed=contribution.failed,
            part=part_at(session.manifest, contribution.count),
        )


async def _demand_no_quarantine(device: RunningDevice, task: str) -> None:
    try:
        Quarantine(device.journal).check(device.ledger.verifier, task)
    except LedgerRefusal as error:
        await device.emit("refused", task, reason=error.reason, message=str(error))
        raise
