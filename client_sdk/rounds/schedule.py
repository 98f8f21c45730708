"""A device's count in a task whose examples serve in turn (``dp.schedule``).

The count is the number of charges that the account has of the schedule, whatever became of them:
the debit alone moves it. A contribution is made for one count and pays for that one; where the
account has moved on meanwhile it is dropped, and the device trains for the new count. So through
kills, aborts and drop-outs no two charges of a device are of one count.
"""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from client_sdk.accounts.recovery import (
    keep_look,
    recover,
    second_look,
)
from client_sdk.errors import ContributionError, PolicyRefusal
from client_sdk.network.server_time import CLOCK_WRONG_S
from client_sdk.rounds.device import RunningDevice
from client_sdk.state.journal import Contribution
from dp.schedule import period_of, schedule_of
from secagg.manifest import Manifest


def count_of(device: RunningDevice, manifest: Manifest) -> int | None:
    """Charges of the task's schedule so far; None: every example serves in every release.

    Raises:
        PolicyRefusal: ``second-look``: a cohort may be open that this device was charged for and
            forgot. ``turns-lost``: the data's account was begun anew without what others had in it.
    """
    if period_of(manifest) == 1:
        return None
    data = device.account.data
    if data is not None and data.lost_at and manifest.created_at <= data.lost_at + CLOCK_WRONG_S:
        raise PolicyRefusal(
            "turns-lost",
            "The account of the data was begun anew, and charges of others were lost with the old "
            "one: which examples served last in this task is not known.",
            expected=f"a task created after {_shown(data.lost_at + CLOCK_WRONG_S)}",
            found=_shown(manifest.created_at),
            remedy="Take part in a newer task, or in one without a period.",
        )
    look = second_look(device.journal)
    if look is not None and look.restored:
        until, now = map(_shown, (look.due_s, device.time.now()))
        raise PolicyRefusal(
            "second-look",
            "This device lost its state folder. Until every cohort that was open then has ended, "
            "it does not know which of its examples served last.",
            expected=f"a start after {until}",
            found=now,
            remedy=f"Run again after {until}, or take part in a task without a period.",
        )
    return device.account.charged(schedule_of(manifest))


def part_at(manifest: Manifest, count: int | None) -> int | None:
    """The part, from 0, of the contribution after ``count`` charges; None: all examples."""
    return None if count is None else count % period_of(manifest)


def demand_count(
    device: RunningDevice, manifest: Manifest, contribution: Contribution, ctx: bytes
) -> None:
    """Return if a contribution is the one that is next, or was when ``ctx`` was charged.

    Call it under the account's lock, before the debit.

    Raises:
        ContributionError: ``contribution-count``.
    """
    if period_of(manifest) == 1:
        return
    count = device.account.charged(schedule_of(manifest), but=ctx)
    if contribution.count != count:
        raise ContributionError(
            "contribution-count",
            "It is not the turn of the examples that the contribution is made of: the task was "
            "charged since, for the same data.",
            expected=f"made after {count} charges",
            found=contribution.count,
            remedy="Nothing needs to be done: the device trains anew.",
        )


async def look_again(device: RunningDevice, manifest: Manifest, *, debits: bool) -> None:
    """Before the first debit of a folder that seems new: add what charges the ledger shows by now.

    A folder that was lost while the first cohort of its device was open leaves no trace before that
    cohort has ended. A task has one open cohort at a time, so the record of that one is there when
    this device is in the next one.

    Args:
        debits: the debit follows; else it is a check-in, which leaves the look before the debit
            only what has come since. So nothing that a look may take too long for, or refuse, is
            left to a cohort that others wait in.

    Raises:
        LedgerRefusal, BudgetError, StateError, TransportError: as
            :func:`client_sdk.accounts.recovery.recover`.
    """
    look, schedule = second_look(device.journal), schedule_of(manifest)
    if period_of(manifest) == 1 or look is None or schedule in look.looked:
        return
    identity_key = device.bundle.certificate.identity_key
    recovered = await recover(device.ledger, device.account, identity_key, read=look.read)
    if recovered.added:
        charges = device.account.charges(manifest.task)
        await device.emit("recovered", manifest.task, charges=charges)
    looked = (*look.looked, schedule) if debits else look.looked
    after = replace(look, looked=looked, read=recovered.read)
    if after != look:
        keep_look(device.journal, after)


def _shown(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")
