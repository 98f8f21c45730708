"""A session under way, and what the app's stop, pause or failed condition does to it.

Until the masking set is fixed a device may leave, and does so with a word to the aggregator, so
that no cohort waits for it. From then on others count on its vector and its shares: a pause and a
failed condition wait for the end, which comes with the cohort's own deadlines; a stop waits for
``stop_wait_s`` and leaves the session to a later run.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from client_sdk.errors import PolicyRefusal, TransportError
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.participant import Outcome, Participant
from client_sdk.rounds.session import Session
from client_sdk.rounds.steering import Interrupted
from client_sdk.threads import beside

_LEAVE_S = 5.0  # for the word that this device leaves


async def exchange(device: RunningDevice, session: Session, *, conditions: bool = True) -> Outcome:
    """Drive a session to its end; ``refusal`` of the outcome: the condition that ended it.

    Args:
        conditions: whether those of the app's policy may end it.

    Raises:
        Interrupted: ``stopped``: the journal keeps the session.
        TransportError, LedgerRefusal: as :meth:`Participant.run`.
    """
    return await _Exchange(device, session, conditions=conditions).run()


async def withdraw(device: RunningDevice, session: Session) -> bool:
    """Tell the aggregator that this device leaves; False: the masking set has it already.

    Where nobody answers, or the aggregator knows no such word, it leaves without.
    """
    try:
        async with asyncio.timeout(_LEAVE_S):
            await device.transport.withdraw(session.id)
    except TransportError as error:
        return not (error.own_status == 409 and error.reason == "withdraw-late")
    except TimeoutError:
        pass
    return True


class _Exchange:
    """A session with what the app wants of it."""

    def __init__(self, device: RunningDevice, session: Session, *, conditions: bool) -> None:
        self._device = device
        self._session = session
        self._conditions = conditions
        self._participant = Participant(device, session)
        self._too_late = False
        self._wished_s: float | None = None  # when a wish was seen first, by the loop's clock

    async def run(self) -> Outcome:
        refusal: PolicyRefusal | None = None
        while True:
            try:
                watch = self._device.steering.watch(
                    self._may_leave_or_stop, conditions=self._conditions
                )
                return replace(await beside(self._participant.run(), watch), refusal=refusal)
            except Interrupted as wish:
                if not self._may_leave():
                    if self._stop_is_over():
                        raise Interrupted("stopped") from None
                elif await withdraw(self._device, self._session):
                    await self._session.cancel(wish.reason, str(wish))
                    refusal = wish.refusal
                else:
                    self._too_late = True

    def _may_leave(self) -> bool:
        """Between two messages, so that no advert reaches the aggregator after the word that this
        device leaves; while nothing reaches it, after a while."""
        if not self._session.may_leave or self._too_late:
            return False
        return self._participant.waits or self._wished_for(_LEAVE_S)

    def _may_leave_or_stop(self) -> bool:
        if not self._may_leave() and self._stop_is_over():
            raise Interrupted("stopped")
        return self._may_leave()

    def _stop_is_over(self) -> bool:
        """Whether the app's stop has waited for as long as it may."""
        steering, settings = self._device.steering, self._device.settings
        return self._wished_for(settings.stop_wait_s) and steering.stopped

    def _wished_for(self, seconds: float) -> bool:
        """Whether the app has wanted the run to stop or pause for so long."""
        now_s = asyncio.get_running_loop().time()
        if not self._device.steering.wished:
            self._wished_s = None
        elif self._wished_s is None:
            self._wished_s = now_s
        return self._wished_s is not None and now_s - self._wished_s >= seconds
