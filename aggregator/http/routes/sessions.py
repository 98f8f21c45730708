"""A device inside a cohort: its mail, its messages, and its masked vector."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from aggregator import logs
from aggregator.cohorts.actor import Cohort, CohortOver
from aggregator.cohorts.driver import Live
from aggregator.cohorts.standing import refuse_barred
from aggregator.errors import Kind, Refusal, conflict, not_found
from aggregator.http.responses import wait
from aggregator.intake import bodies
from aggregator.service import Service
from aggregator.store import reads, sessions
from aggregator.store.mail import MADE_ANEW
from secagg import http_api, limits
from secagg.errors import LocalProtocolError
from secagg.messages import KINDS, Complaint, Deals, MaskedInput, Unmask
from secagg.ranges import EXACT_MAX
from secagg.server import Exclude, Received, State, masking_set_of, senders_of
from secagg.server.transitions import TABLE, TERMINAL

_ENVELOPE = 512  # bytes around a message: the frame, the signer and its signature
_MESSAGE_CAP = max(KINDS[kind][1] for kind in (Deals, Complaint, MaskedInput, Unmask)) + _ENVELOPE
_MAIL_BATCH = 64  # messages in one answer


@dataclass(frozen=True)
class ServedSession:
    """What the service knows of a device's session."""

    id: str
    task: str
    cohort: str | None
    index: int
    stale: bool  # it waits, but can never be in a cohort: expired, or for too old a version
    identity: bytes  # of its device


def routes(service: Service) -> list[web.RouteDef]:
    core, settings, driver = service.core, service.core.settings, service.driver

    async def find(request: web.Request) -> ServedSession:
        identity, name = await service.callers.device(request), request.match_info["session"]
        if (member := driver.member(name)) is not None:
            _demand_own(member.identity, identity)
            return ServedSession(name, member.task, member.cohort, member.index, False, identity)
        stored = await reads.session(core.database, name)
        if stored is None:
            await refuse_barred(core, identity)  # a ban removes sessions that wait
            raise not_found("session")
        _demand_own(stored.identity, core.database.cells.name(identity.hex()))
        rules = (await service.tasks.get(stored.task)).manifest.cohort
        stale = stored.cohort is None and (
            stored.model_version < stored.newest_version - rules.versions_back
            or stored.expires_at <= core.clock()
        )
        return ServedSession(
            name, stored.task, stored.cohort, stored.roster_index or 0, stale, identity
        )

    async def live(session: ServedSession) -> Live:
        if session.cohort is None:
            raise conflict(
                "session-waiting",
                "The session is in no cohort yet.",
                remedy="Wait for the roster in the session's messages.",
            )
        logs.carry(cohort=session.cohort, task=session.task)
        served = await driver.get(session.cohort)
        logs.carry(phase=served.cohort.state.phase)
        return served

    async def get_messages(request: web.Request) -> web.Response:
        after = bodies.query_int(request, "after", 0)
        wait_s = bodies.query_number(request, "wait_s", 0, settings.long_poll_max_s)
        session = await find(request)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            with core.signals.listen(f"session:{session.id}") as arrived:
                rows = await reads.mail_after(core.database, session.id, after, _MAIL_BATCH)
                if rows and session.cohort is None:
                    session = await find(request)
                found = await delivered(session, rows)
                if after == 0 and rows and 1 not in found:
                    raise stale()  # the roster is gone: the cohort went on without this device
                left = until - loop.time()
                if found or left <= 0 or not service.ready:
                    break
                if session.stale:
                    break
                await wait(arrived, left)
            if session.cohort is None:
                session = await find(request)
        if not found and session.stale:
            raise stale()
        return bodies.json_response(http_api.Mail(messages=tuple(found.values())))

    async def delivered(
        session: ServedSession, rows: Sequence[tuple[int, bytes]]
    ) -> dict[int, bytes]:
        """Number -> message, without those that nobody can need any more."""
        found: dict[int, bytes] = {}
        for number, message in rows:
            letter: bytes | None = message
            if message == MADE_ANEW and session.cohort is not None:
                letter = await driver.letter(session.cohort, session.index, number)
            if letter:
                found[number] = letter
        return found

    async def post_message(request: web.Request) -> web.Response:
        session = await find(request)
        try:
            cohort = (await live(session)).cohort
            cap = await cap_of(request, cohort, session.index)
            async with service.intake.body(request, session.identity, cap) as message:
                await cohort.submit(Received(session.index, message, core.clock()))
        except CohortOver:
            raise ended() from None
        return web.Response(status=204)

    async def cap_of(request: web.Request, cohort: Cohort, index: int) -> int:
        """The size that a message may have now; refused before a byte of a larger one is read."""
        size = request.content_length or 0
        if size > due_bytes(cohort.state, index):
            await cohort.refresh()  # what is not due here may be due by now
        cap = due_bytes(cohort.state, index)
        if cap < size <= _MESSAGE_CAP:
            raise conflict(
                "message-not-due",
                "No message of this size is due from this device now.",
                expected=f"at most {cap} bytes",
                found=size,
                remedy="The session's messages say how far the cohort is.",
            )
        return cap

    async def get_vector(request: web.Request) -> web.Response:
        session = await find(request)
        try:
            uploads = (await live(session)).uploads
        except CohortOver:
            raise ended() from None
        ticket = await uploads.announced(session.index)
        received = await uploads.received(session.index)
        complete = uploads.added(session.index)
        assert received <= ticket.size_bytes  # noqa: S101  append refuses more
        return bodies.json_response(
            http_api.UploadState(received_bytes=received, complete=complete)
        )

    async def put_vector(request: web.Request) -> web.Response:
        offset = bodies.query_int(request, "offset", 0, EXACT_MAX)
        session = await find(request)
        try:
            served = await live(session)
            uploads, index = served.uploads, session.index
            size = (await uploads.announced(index)).size_bytes
            cap = min(settings.upload_chunk_max, max(0, size - offset))
            bodies.declared_size(request, cap)
            received = await uploads.append(index, offset, bodies.stream(request, cap, settings))
            if received == size and not uploads.added(index):
                await served.adder.add(index)
        except CohortOver:
            raise ended() from None
        return bodies.json_response(
            http_api.UploadState(received_bytes=received, complete=uploads.added(index))
        )

    async def withdraw(request: web.Request) -> web.Response:
        """Let a device go of which no vector is awaited yet: nobody waits for it then."""
        session = await find(request)
        if session.cohort is None:
            async with core.database.write() as connection:
                await sessions.drop_waiting(connection, session.id)
            if await sessions.identity_of(core.database, session.id) is None:
                return web.Response(status=204)
            session = await find(request)  # a cohort was quicker
        try:
            cohort = (await live(session)).cohort
            with contextlib.suppress(LocalProtocolError):  # the masking set is fixed
                await cohort.submit(Exclude(session.index, core.clock()))
        except CohortOver:
            return web.Response(status=204)
        if session.index in masking_set_of(cohort.state):
            raise conflict(
                "withdraw-late",
                "The masking set is fixed, and this device is in it.",
                remedy="Send the masked vector, or let the cohort's deadline pass.",
            )
        return web.Response(status=204)

    base = "/v1/sessions/{session:[0-9a-f]{64}}"
    return [
        web.delete(base, withdraw),
        web.get(f"{base}/messages", get_messages),
        web.post(f"{base}/messages", post_message),
        web.get(f"{base}/vector", get_vector),
        web.put(f"{base}/vector", put_vector),
    ]


def due_bytes(state: State, index: int) -> int:
    """The size of the largest message that a device may send in this phase of its cohort: of the
    kinds that are due from it, for as many neighbours as it has.

    Small ones are always read: a repeat, and one that comes too late, the machine passes over.
    """
    small = limits.SMALL_MESSAGE_BYTES_MAX + _ENVELOPE
    if isinstance(state, TERMINAL) or index not in senders_of(state):
        return small
    due = [cap for kind, (_, cap) in KINDS.items() if kind in TABLE[type(state)]]
    neighbours = len(state.facts.graph.neighbours(index))
    return small + max(due) * neighbours // limits.DEGREE_MAX


def _demand_own(owner: bytes | str, caller: bytes | str) -> None:
    if owner != caller:
        raise Refusal(Kind.FORBIDDEN, "session-not-yours", "The session is another device's.")


def stale() -> Refusal:
    return conflict(
        "session-stale",
        "This advert can no longer be in a cohort.",
        remedy="Check in again and report in with a new advert.",
    )


def ended() -> Refusal:
    return conflict(
        "cohort-ended",
        "The cohort has ended.",
        remedy="The session's messages say how.",
    )
