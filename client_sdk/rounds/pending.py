"""A session of an earlier process is finished first, under the policy of this one.

A policy may change between two processes. While nothing is charged, nothing that a contribution
shows has left, so the present policy decides: it admits the task anew, and the session goes on only
with terms that are no weaker than the present ones.
"""

from __future__ import annotations

from dataclasses import replace

from client_sdk.errors import PolicyRefusal, StateError, TransportError
from client_sdk.failures import TrainingFailure
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.examples_told import ExamplesTold
from client_sdk.rounds.exchange import exchange, withdraw
from client_sdk.rounds.participant import Outcome, Participant, note_given
from client_sdk.rounds.schedule import part_at
from client_sdk.rounds.session import Session
from client_sdk.state.journal import Contribution, Journal
from secagg.client import Advertised, AwaitingVector, Checked, Failed, Finished, Shared


async def finish_pending(device: RunningDevice, task: str | None = None) -> Outcome | None:
    """Drive a session that an earlier process left to its end; None where there is none.

    Args:
        task: that the app wants to take part in. A session of another one is left if no cohort
            counts on this device yet (``other-task``); else the app is told for how long it may
            have to wait.

    Raises:
        Interrupted: the app stops or pauses the run.
        TransportError, LedgerRefusal, StateError: as :meth:`Participant.run`.
    """
    session = Session.resume(device.journal, device.bundle, device.time.now)
    if session is None:
        return None
    note_given(device.account, session)
    participant = Participant(device, session)
    try:
        await device.steering.free(device.hear_time(session.record.task))
    except TransportError as error:
        if participant.may_come_later(error):
            raise  # else: of a task that is not offered, the mailbox says what became
    phase, dropped = session.state.phase, None
    contribution = _contribution_of(device.journal, session)
    failed = None if contribution is None else contribution.failed
    told = None if contribution is None else ExamplesTold.of_contribution(contribution)
    failure = None if contribution is None else _failure_of(contribution)
    shown: dict[str, object] = {} if failed is None else {"failed": failed}
    if failure is not None:
        shown |= failure.shown()
    await device.emit("resumed", session.record.task, session.id, phase=phase, **shown)
    try:
        check_pending(device, session)
    except PolicyRefusal as refusal:
        if session.may_leave:
            await withdraw(device, session)
        await session.cancel(refusal.reason, f"The unfinished session was dropped: {refusal}")
        dropped = refusal
    if dropped is None and task not in (None, session.record.task):
        await _give_way(device, session, participant, str(task))
    outcome = await exchange(device, session, conditions=False)  # it trains no more
    part = None if contribution is None else part_at(session.manifest, contribution.count)
    dropped = dropped or outcome.refusal
    return replace(outcome, refusal=dropped, failed=failed, failure=failure, told=told, part=part)


async def _give_way(
    device: RunningDevice, session: Session, participant: Participant, task: str
) -> None:
    """For the task that the app wants: leave the session, or say for how long it goes on."""
    if session.may_leave and await withdraw(device, session):
        await session.cancel("other-task", f"The app wants to take part in {task!r} now.")
        return
    if isinstance(session.state, Failed | Finished):
        return  # it ends at once
    await device.emit(
        "waiting",
        task,
        reason="other-task",
        message="A cohort of another task counts on this device; that session is finished first.",
        pending=session.record.task,
        seconds=participant.seconds_left,
    )


def check_pending(device: RunningDevice, session: Session) -> None:
    """Return if a session goes on; after its charge it always does, with its own terms.

    Raises:
        PolicyRefusal: as :meth:`~client_sdk.rounds.device.RunningDevice.admit_again`;
            ``policy-changed``: the session's terms are weaker than the present policy's, or, while
            it waits for a cohort, others.
        StateError: ``data-account-missing``.
    """
    state, policy = session.state, device.policy
    waits = isinstance(state, Advertised)
    if isinstance(state, Shared | Checked | AwaitingVector):
        if state.session.ctx.hex() in device.account.cohorts():
            return
    elif not waits:
        return
    device.account.refresh()
    device.admit_again(session.manifest)
    begun = (session.record.survivors_min, frozenset(session.record.partner_keys))
    present = (policy.min_cohort, device.partner_keys)
    weaker = begun[0] < present[0] or not begun[1] <= present[1]
    if weaker or (waits and begun != present):
        raise PolicyRefusal(
            "policy-changed",
            "The session began under another policy.",
            expected=_shown(*present),
            found=_shown(*begun),
            remedy="Run the task again: the next session has the present terms.",
        )


def _shown(survivors_min: int, partner_keys: frozenset[bytes]) -> dict[str, object]:
    return {"min_cohort": survivors_min, "partner_keys": sorted(key.hex() for key in partner_keys)}


def _failure_of(contribution: Contribution) -> TrainingFailure | None:
    """Of one that an older software journalled, what its text says."""
    if contribution.failure is not None or contribution.failed is None:
        return contribution.failure
    version = contribution.model_version
    return TrainingFailure(
        reason="contribution-failed", message=contribution.failed, version=version, given="zeros"
    )


def _contribution_of(journal: Journal, session: Session) -> Contribution | None:
    """A session's contribution, as far as it is still there."""
    try:
        contribution = journal.load_contribution()
    except StateError:
        return None  # masking finds it gone
    if contribution is None or contribution.name != session.record.contribution:
        return None
    return contribution
