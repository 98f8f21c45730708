"""A run: offer, check-in, contribution, exchange, round by round until the task ends."""

from __future__ import annotations

from dataclasses import replace

from client_sdk.accounts.recovery import second_look_due
from client_sdk.contribution import Contributor
from client_sdk.errors import ContributionError, LedgerRefusal, PolicyRefusal
from client_sdk.ledger.evidence import Quarantine
from client_sdk.rounds.checkin import check_in, next_offer
from client_sdk.rounds.contributing import Training, version_of
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.faults import tell_fault
from client_sdk.rounds.missing_charges import recover_charges
from client_sdk.rounds.pace import Pace
from client_sdk.rounds.participant import Participant
from client_sdk.rounds.pending import finish_pending
from client_sdk.rounds.result import Tally
from client_sdk.rounds.schedule import part_at
from client_sdk.rounds.session import Session
from client_sdk.state.models import forget_models

_FAILURES_MAX = 3  # of a contributor in a row, where a failure may be known


async def take_part(
    device: RunningDevice, contributor: Contributor, task: str, rounds: int | None
) -> Tally:
    """Give until ``rounds`` releases hold this device's contribution, or the task ends.

    Raises:
        As :meth:`client_sdk.client.Client.run`.
    """
    training = Training(device, contributor)
    tally = Tally(told=training.told)
    try:
        await _rounds(device, training, tally, task, rounds)
    except PolicyRefusal as refusal:
        tally.refusals.append(refusal)
        await device.emit("refused", task, reason=refusal.reason, message=str(refusal))
    return tally


async def _rounds(
    device: RunningDevice, training: Training, tally: Tally, task: str, rounds: int | None
) -> None:
    pace = Pace(device)
    failures = 0
    pending = await finish_pending(device)
    if pending is not None and pending.task == task:
        if pending.fault is not None:
            raise pending.fault
        tally.add(pending)
        await pace.after(pending)
    elif pending is not None and pending.evidence is not None:
        tally.evidence.append(pending.evidence)
    await _demand_no_quarantine(device, task)
    while rounds is None or len(tally.releases) < rounds:
        offer = await next_offer(device, task, pace.after_version, pace.until_s)
        if offer is None:
            tally.finished = True
            forget_models(device.journal.models)
            await device.emit("finished", task)
            break
        device.time.hear(offer.now)
        try:
            if second_look_due(device.journal, device.time.now()):
                await recover_charges(device, again=True)
            checkin = await check_in(device, task, offer)
            if device.gave(checkin.manifest, offer.model.digest) is not None:
                await device.emit(
                    "waiting", task, reason="model-given", version=offer.model.version
                )
                pace.wait_for_newer(offer.model.version)
                continue
            contribution = await training.contribution(checkin)
        except LedgerRefusal as error:
            await tell_fault(device, task, error)
            raise
        except ContributionError as error:
            failures += 1
            tally.aborted += 1
            await device.emit("aborted", task, reason=error.reason, message=str(error))
            if failures >= _FAILURES_MAX:
                raise
            pace.wait_for_newer(offer.model.version)
            continue
        failures = 0
        session = Session.begin(
            device.journal,
            device.bundle,
            offer.manifest,
            model_version=version_of(contribution, checkin),
            model_digest=contribution.model_digest,
            contribution=contribution.name,
            survivors_min=device.policy.min_cohort,
            partner_keys=device.partner_keys,
            lifetime_s=device.settings.advert_lifetime_s,
            clock=device.time.now,
        )
        outcome = replace(
            await Participant(device, session).run(),
            failed=contribution.failed,
            part=part_at(session.manifest, contribution.count),
        )
        if outcome.fault is not None:
            raise outcome.fault
        tally.add(outcome)
        await pace.after(outcome)


async def _demand_no_quarantine(device: RunningDevice, task: str) -> None:
    try:
        Quarantine(device.journal).check(device.ledger.verifier, task)
    except LedgerRefusal as error:
        await device.emit("refused", task, reason=error.reason, message=str(error))
        raise
