"""Adverts wait until enough devices are ready; then they close into a cohort.

A cohort closes when ``size_max`` fresh adverts for the task's current version (FedBuff: for
versions within the manifest's bound) of devices that trust each other (see
:mod:`aggregator.cohorts.choosing`) are there, or when ``size_min`` are and ``report_s`` has passed
since the first (or since the task's last cohort ended, which gives its members time to report in
again). A task has at most one open cohort: the
next version depends on its release. Every claim is a conditional update, so that replicas that
try at once form one cohort.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from aggregator.cohorts.actor import put_mail
from aggregator.cohorts.charging import affordable
from aggregator.cohorts.choosing import Clash, WaitingDevice, choose
from aggregator.cohorts.log import OPENED, CohortFormed, Replay, begin, encode_formed
from aggregator.cohorts.refusals import clashes_of
from aggregator.cohorts.standing import refuse_barred, standing_of
from aggregator.cohorts.strikes import eligible, is_struck, tiers
from aggregator.core import Core
from aggregator.disk import full
from aggregator.errors import Kind, Refusal, conflict
from aggregator.logs import get_logger
from aggregator.store import cohorts, sessions, tasks
from aggregator.store.database import Conflict
from aggregator.store.sessions import Waiting
from aggregator.tasks import Task
from dp.accounting.budget import Account
from secagg.context import advert_digest
from secagg.errors import RemoteProtocolError
from secagg.manifest import CohortRules
from secagg.messages import Advert, peek
from secagg.server import check_advert

_log = get_logger("formation")
_ADVERT_MARGIN_S = 5  # an advert that expires sooner is not worth a roster
_DISK_AGAIN_S = 10.0  # between looks whether space is free again


@dataclass(frozen=True)
class Formed:
    cohort: str
    replay: Replay
    sessions: tuple[str, ...]  # by roster index


@dataclass(frozen=True)
class NotYet:
    """``again_s``: Unix seconds at which time alone could form a cohort; None: not by time."""

    again_s: float | None


async def report_in(core: Core, task: Task, identity: bytes, signed: bytes) -> str:
    """Take a device's signed advert; returns its session.

    The same bytes again give the same session. A newer advert of the device replaces one that
    still waits.

    Raises:
        RemoteProtocolError: from ``secagg.server.check_advert``.
        Refusal: ``advert-not-yours``, ``device-banned``, ``certificate-revoked`` or
            ``partner-removed``; ``advert-stale``, ``task-paused``,
            ``task-finished``.
    """
    session = advert_digest(signed).hex()
    now = core.clock()
    known = await sessions.identity_of(core.database, session)
    if known is None:
        advert = await asyncio.to_thread(check_advert, task.config, signed, int(now))
        if advert.certificate.identity_key != identity:
            raise Refusal(Kind.FORBIDDEN, "advert-not-yours", "The advert is another device's.")
        await refuse_barred(core, identity, advert.certificate.partner_key)
        await _insert(core, task, session, identity, signed, advert, now)
        core.metrics.adverts.labels(task.name).inc()
    elif known != core.database.cells.name(identity.hex()):
        raise Refusal(Kind.FORBIDDEN, "advert-not-yours", "The advert is another device's.")
    return session


async def _insert(
    core: Core,
    task: Task,
    session: str,
    identity: bytes,
    signed: bytes,
    advert: Advert,
    now: float,
) -> None:
    async with core.database.write() as connection:
        row = await tasks.trained_on(connection, task.name, advert.model_version)
        if row.state != "open":
            raise conflict(f"task-{row.state}", f"The task is {row.state}.")
        oldest = row.version - task.manifest.cohort.versions_back
        known = row.digest == advert.model_digest.hex()
        if not known or not oldest <= advert.model_version <= row.version:
            raise conflict(
                "advert-stale",
                "The advert is for another version of the model.",
                expected=row.version if oldest == row.version else (oldest, row.version),
                found=advert.model_version,
                remedy="Check in again and train from the current version.",
            )
        await sessions.report_in(
            connection,
            session,
            task=task.name,
            identity=identity,
            partner=advert.certificate.partner_key,
            trusted=advert.trusted,
            advert=signed,
            version=advert.model_version,
            expires_at=min(advert.expires_at, advert.certificate.not_after),
            now=now,
        )


async def try_form(core: Core, task: Task) -> Formed | NotYet:
    """Close a cohort of the task's waiting adverts, if it is time."""
    now = core.clock()
    rules = task.manifest.cohort
    async with core.database.read() as connection:
        stored = await tasks.forming(connection, task.name)
        if stored.state != "open" or stored.cohort is not None:
            return NotYet(None)
        found = await sessions.waiting(
            connection,
            task.name,
            oldest=stored.version - rules.versions_back,
            until=now + _ADVERT_MARGIN_S,
            with_barred=False,
        )
        rows = _newest_of_each(found)
        if len(rows) < rules.size_min:
            return NotYet(None)
        attempts, ended_at = await cohorts.attempts(connection, task.name, stored.version)
        last_opened_at = await cohorts.last_opened_at(connection, task.name)
        clashes = await clashes_of(connection, task.name, now)
        present = [ready_of(row) for row in rows]
        standing = await standing_of(connection, task.name, present)
    free, again_s = eligible(present, standing, now)
    waiting = await asyncio.to_thread(
        _first_choice, tiers(free, standing, rules, now), rules, clashes, last_opened_at
    )
    if not waiting:
        return NotYet(again_s)
    if not affordable(Account.from_json(stored.account.encode()), task.manifest):
        await _finish(core, task)
        return NotYet(None)
    doubtful = any(is_struck(standing.strikes.get(w.session, ()), now) for w in waiting)
    if len(waiting) < rules.size_max or doubtful:  # better ones may yet report in
        chosen = {ready.session for ready in waiting}
        arrived = min(row.received_at for row in rows if row.session in chosen)
        due = max(arrived, ended_at) + task.manifest.deadlines.report_s
        if now < due:
            return NotYet(due)
    if (low := await core.ask_blobs(full, core.settings)) is not None:
        _log.warning(
            "cohort-held-back",
            task=task.name,
            reason="disk-low",
            folder=str(low.folder),
            free_bytes=low.free_bytes,
            free_min=low.free_min,
            remedy="Free space in the folder, or lower disk_free_min.",
        )
        return NotYet(now + _DISK_AGAIN_S)
    try:
        waiting = await _with_adverts(core, waiting)
        return await _form(core, task, stored.version, attempts, waiting, now)
    except Conflict:
        return NotYet(now)  # another replica was first, or a device sent a newer advert


def _first_choice(
    tiers_: Iterable[Sequence[WaitingDevice]],
    rules: CohortRules,
    clashes: Collection[Clash],
    last_opened_at: float,
) -> tuple[WaitingDevice, ...]:
    """The choice from the first tier that gives one."""
    for tier in tiers_:
        chosen = choose(tier, rules, clashes=clashes, last_opened_at=last_opened_at)
        if chosen:
            return chosen
    return ()


def _newest_of_each(rows: Sequence[Waiting]) -> list[Waiting]:
    """The rows, in order, with the newest alone of each device: on PostgreSQL adverts that cross
    each other all stay, and a roster with a device twice can never be closed."""
    newest: dict[str, Waiting] = {}
    for row in rows:
        kept = newest.setdefault(row.identity, row)
        if (row.received_at, row.session) > (kept.received_at, kept.session):
            newest[row.identity] = row
    return [row for row in rows if newest[row.identity] is row]


def ready_of(row: Waiting) -> WaitingDevice:
    """A stored session that waits, without its advert."""
    return WaitingDevice(
        session=row.session,
        advert=b"",
        version=row.model_version,
        received_at=row.waiting_since,
        identity=row.identity,
        partner=row.partner,
        trusted=frozenset(row.trusted.split()),
    )


async def _with_adverts(core: Core, waiting: Sequence[WaitingDevice]) -> tuple[WaitingDevice, ...]:
    """The same devices with their signed adverts.

    Raises:
        Conflict: one of them waits no longer.
    """
    names = [ready.session for ready in waiting]
    adverts = await sessions.adverts(core.database, names)
    if len(adverts) < len(names):
        raise Conflict("a device sent a newer advert")
    return tuple(replace(ready, advert=adverts[ready.session]) for ready in waiting)


async def _finish(core: Core, task: Task) -> None:
    async with core.database.write() as connection:
        await tasks.set_state(connection, task.name, "finished")
    core.signals.notify(f"task:{task.name}")


async def _form(
    core: Core, task: Task, version: int, attempt: int, waiting: Sequence[WaitingDevice], now: float
) -> Formed | NotYet:
    cohort = secrets.token_bytes(32)
    formed = CohortFormed(cohort, attempt, tuple(w.advert for w in waiting), now)
    try:
        replay, effects = await asyncio.to_thread(begin, task.config, formed)
    except RemoteProtocolError as error:
        _log.warning("advert-dropped", task=task.name, reason=error.reason)
        await _drop_bad(core, task, waiting, now)
        return NotYet(now)
    by_digest = {w.session: w for w in waiting}
    ordered = tuple(entry.advert_digest.hex() for entry in replay.state.roster)
    assert set(ordered) == set(by_digest)  # noqa: S101  the machine neither adds nor drops
    async with core.database.write() as connection:
        await tasks.claim(connection, task.name, version, cohort.hex())
        await cohorts.insert(
            connection,
            cohort.hex(),
            task=task.name,
            attempt=attempt,
            version=version,
            phase=replay.state.phase,
            size=len(ordered),
            opened_at=now,
            event=(OPENED, encode_formed(formed)),
        )
        for index, session in enumerate(ordered):
            await sessions.join(connection, session, cohort.hex(), index)
        await put_mail(connection, ordered, {}, effects)
    _log.info("cohort-opened", task=task.name, cohort=cohort.hex(), size=len(ordered))
    core.signals.notify(*(f"session:{session}" for session in ordered))
    return Formed(cohort.hex(), replay, ordered)


async def _drop_bad(core: Core, task: Task, waiting: Sequence[WaitingDevice], now: float) -> None:
    """Remove adverts that no longer verify (a certificate or the advert has expired)."""
    for entry in waiting:
        try:
            check_advert(task.config, entry.advert, int(now))
        except RemoteProtocolError:
            async with core.database.write() as connection:
                await sessions.drop_waiting(connection, entry.session)
            core.signals.notify(f"session:{entry.session}")


def task_named_in(signed: bytes) -> str:
    """The task that a signed advert claims to be for; nothing is verified yet.

    Raises:
        RemoteProtocolError: as ``secagg.messages.decode``.
    """
    advert, _ = peek(signed, Advert)
    return advert.task
