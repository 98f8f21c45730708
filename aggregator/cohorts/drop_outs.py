"""Where a cohort that has ended lost its devices, and which of them never dealt.

A device that joins cohorts and deals in none costs each of them the whole time for dealing. It is
nothing that anybody could be convicted of, so the operator is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aggregator.cohorts.faults import MISSED
from aggregator.core import Core
from aggregator.logs import get_logger
from aggregator.store import drop_outs as stored
from aggregator.store import tasks
from aggregator.store.database import Connection
from secagg.messages import KINDS, Confirmation, Deals, Refusal, Unmask
from secagg.server import Aborted, Released, masking_set_of

_log = get_logger("drop-outs")

NOT_DEALING_MIN = 3  # cohorts in a row: one may be a phone in a tunnel
_SHOWN_MAX = 20  # of each task, the worst
NOT_DEALING_KEPT_S = 7 * 86_400.0  # after the last of them


def lost_at(state: Aborted | Released) -> dict[str, int]:
    """Step -> devices that did not come through it.

    A step that the aggregator broke off lost nobody. Nor did the last one of a release: devices
    that had not answered were not needed any more.
    """
    dealt, confirmed = len(_from(state, Deals)), len(_from(state, Confirmation))
    fixed = len(masking_set_of(state))
    step: str | None = None  # at which devices were missed
    silent = 0
    if isinstance(state, Released):
        survivors = len(state.survivors)
    else:
        step, silent = MISSED.get(state.reason), len(state.silent)
        survivors = len(state.summed)
        if step == "confirming":
            survivors = confirmed + silent
        elif step == "unmasking":
            survivors = len(_from(state, Unmask)) + silent
    lost: dict[str, int] = {}
    if fixed or step in ("sharing", "checking"):
        lost["sharing"] = state.facts.size - dealt
    if fixed:
        lost["checking"] = dealt - fixed
    if survivors:
        lost["masking"] = fixed - survivors
    if survivors and step != "confirming":
        lost["confirming"] = survivors - confirmed
    if step is not None:
        lost[step] = silent
    return lost


def _from(state: Aborted | Released, kind: type[Any]) -> set[int]:
    """Devices of which a message of this kind was obeyed."""
    number, _ = KINDS[kind]
    return set(state.accepted.get(number, ()))


async def keep(
    connection: Connection, core: Core, task: str, state: Aborted | Released, now: float
) -> None:
    """Count where the cohort lost its devices, in the transaction that ends it."""
    lost = lost_at(state)
    await stored.count(connection, task, lost)
    if "sharing" not in lost:
        return
    dealt = _from(state, Deals)
    excused = dealt | _from(state, Refusal) | state.excluded
    counted = await stored.count_not_dealing(
        connection,
        task,
        missing=_identities(state, set(range(state.facts.size)) - excused),
        dealt=_identities(state, dealt),
        now=now,
    )
    for identity, cohorts in counted.items():
        if cohorts == NOT_DEALING_MIN:
            _log.warning(
                "device-never-deals",
                task=task,
                cohort=state.facts.cohort.hex(),
                device=core.pseudonyms.device(bytes.fromhex(identity)),
                cohorts=cohorts,
                remedy="Its cohorts wait the whole share_s. secagg device list shows its key: tell "
                "its partner, or secagg device ban KEY.",
            )


async def not_dealing(core: Core) -> dict[str, int]:
    """Identities (hex) of devices that deal in no cohort -> how many in a row of one task."""
    found: dict[str, int] = {}
    async with core.database.read() as connection:
        for task, _ in await tasks.unfinished(connection):
            rows = await stored.devices_not_dealing(connection, task, NOT_DEALING_MIN, _SHOWN_MAX)
            for row in rows:
                found[row.identity] = max(row.cohorts, found.get(row.identity, 0))
    return found


def _identities(state: Aborted | Released, indices: Iterable[int]) -> list[str]:
    return [state.facts.identity(index).hex() for index in indices]
