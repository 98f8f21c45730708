"""What a cohort's mail tells of it, where its log cannot be replayed.

A newer software may refuse an event that an older one took, with a cohort open at the upgrade. The
mail is what the devices were told, signed: the roster, and S if it was fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from aggregator.cohorts.log import RECEIVED, decode_event
from aggregator.store import cohorts, mail
from aggregator.store.database import Connection
from aggregator.store.sealing import CellRefused
from dp.ledger.records import ReleaseEntry
from secagg import keys
from secagg.context import context, roster_digest
from secagg.errors import RemoteProtocolError
from secagg.limits import DIGEST_BYTES
from secagg.messages import Abort, MaskedInput, MaskingSet, Roster, peek, sign
from secagg.secret import Secret
from secagg.server import Received

UNREADABLE = "log-unreadable"  # the reason of such an end
_ROSTER_NUMBER, _MASKING_SET_NUMBER = 1, 3  # in the mail of a device that went on so far

_M = TypeVar("_M", Roster, MaskingSet)


@dataclass(frozen=True)
class Told:
    """``size``: of the roster. ``last``: session -> number of its last mail."""

    cohort: bytes
    size: int
    roster: Roster | None
    masking_set: tuple[int, ...]
    last: dict[str, int]

    def ctx(self, task: str) -> bytes:
        """Zeros without a roster."""
        roster = self.roster
        if roster is None:
            return bytes(DIGEST_BYTES)
        return context(
            task=task,
            cohort=self.cohort,
            attempt=roster.attempt,
            manifest_digest=roster.manifest_digest,
            models=roster.models,
            roster=roster_digest(roster.entries),
        )

    def entry(self, task: str, now: float) -> ReleaseEntry:
        """The record of the charge, of version 1: nobody is listed."""
        roster = self.roster
        models = roster.models if roster else ()
        return ReleaseEntry(
            release=0,
            cohort=self.cohort,
            ctx=self.ctx(task),
            roster_digest=roster_digest(roster.entries) if roster else bytes(DIGEST_BYTES),
            cohort_size=self.size,
            masking_set_size=len(self.masking_set) or self.size,
            survivors=0,
            contributors=(),
            model_digests=tuple(model.digest for model in models),
            model_versions=tuple(model.version for model in models),
            sum_digest=b"",
            new_model_digest=b"",
            released_at=int(now),
            outcome="charged",
        )


async def told_in(connection: Connection, cohort: str) -> Told:
    """What the devices of an open cohort were told."""
    size = await cohorts.size(connection, cohort)
    last = await mail.last_numbers(connection, cohort)
    roster: Roster | None = None
    masking_set: tuple[int, ...] = ()
    for session in last:  # the first that has what is looked for, as a rule
        if roster is None:
            roster = await _message(connection, session, _ROSTER_NUMBER, Roster)
        if not masking_set:
            fixed = await _message(connection, session, _MASKING_SET_NUMBER, MaskingSet)
            masking_set = fixed.members if fixed else ()
        if roster is not None and masking_set:
            break
    return Told(bytes.fromhex(cohort), size, roster, masking_set, last)


async def _message(connection: Connection, session: str, number: int, kind: type[_M]) -> _M | None:
    try:
        signed = await mail.message(connection, session, number)
        if signed is None:
            return None
        message, _ = peek(signed, kind)
    except (RemoteProtocolError, CellRefused):
        return None
    return message


def may_have_sent(log: Sequence[tuple[str, bytes]]) -> bool:
    """Whether some device may have sent a byte of its vector: it announces it before."""
    for kind, payload in log:
        if kind != RECEIVED:
            continue
        try:
            event = decode_event(kind, payload)
            assert isinstance(event, Received)  # noqa: S101  narrows the type
            peek(event.message, MaskedInput)
        except Exception as error:
            if getattr(error, "reason", "") in ("frame-kind", "frame-too-large"):
                continue  # another kind
        return True  # or what cannot be read
    return False


async def tell_abandoned(connection: Connection, task_key: Secret, told: Told) -> None:
    """Put the end of the cohort into the mail of its devices."""
    if told.roster is None or not told.last:
        return
    abort = Abort(told.cohort, UNREADABLE)
    signed = sign(abort, told.ctx(told.roster.task), keys.signing_key(task_key))
    await mail.put(
        connection, ((session, number + 1, signed) for session, number in told.last.items())
    )
