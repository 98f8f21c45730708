"""Charges that an account may lack, found in the ledger: by a new device, and once more later.

:mod:`client_sdk.accounts.recovery` says how they are found, this module when they are looked for.
"""

from __future__ import annotations

from collections import Counter

from msgspec.structs import replace

from client_sdk.accounts.recovery import (
    LEAVES_MAX,
    Recovered,
    keep_look,
    plan_second_look,
    recover,
    second_look,
    second_look_due,
)
from client_sdk.errors import LedgerRefusal, TransportError
from client_sdk.network.http import is_transient
from client_sdk.rounds.device import RunningDevice
from client_sdk.rounds.faults import name_evidence


async def recover_new(device: RunningDevice, task: str) -> None:
    """Where there is no account: the state folder is new, or what was in it is lost.

    By the aggregator's time: the second look is planned by it.
    """
    if device.account.is_new:
        try:
            await device.hear_time(task)
        except TransportError as error:
            if error.own_status is None or is_transient(error):
                raise
        await recover_charges(device)


async def recover_charges(
    device: RunningDevice, leaves_max: int = LEAVES_MAX, *, again: bool = False
) -> Recovered:
    """Look through the ledger, and plan or do the second look.

    Where no word of the aggregator's was heard, by this device's own clock: as late as it may be
    wrong. A contribution beside no account goes: only the account knew whether it had served.

    Args:
        leaves_max: most records that are read now.
        again: what a look before has read is not read again.
    """
    journal, is_new = device.journal, device.account.is_new
    now_s, wrong_by_s = device.time.now(), device.time.wrong_by_s
    identity_key = device.bundle.certificate.identity_key
    if is_new:
        journal.drop_contribution()
        plan_second_look(journal, now_s + device.policy.max_hold_s)  # until it is known better
    charged = Counter({task: device.account.charges(task) for task in device.account.tasks()})
    look = second_look(journal)
    read = look.read if look is not None and again else None
    try:
        recovered = await recover(device.ledger, device.account, identity_key, leaves_max, read)
    except LedgerRefusal as error:
        await name_evidence(device, error)
        raise
    if is_new and recovered.cohort_max_s:
        due_s = now_s + wrong_by_s + recovered.cohort_max_s + device.settings.opening_s
        restored = bool(recovered.charges)
        plan_second_look(journal, due_s, restored=restored, read=recovered.read)
    elif is_new or second_look_due(journal, now_s - wrong_by_s):
        plan_second_look(journal, 0.0)
    elif look is not None:
        keep_look(journal, replace(look, read=recovered.read))
    for task in recovered.charges:
        if (charges := device.account.charges(task)) > charged[task]:
            await device.emit("recovered", task, charges=charges)
    return recovered
