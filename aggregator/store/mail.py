"""Messages that wait for devices. Every function works in its caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from aggregator.store.database import Connection, cells_of
from aggregator.store.schema import mail, sessions
from aggregator.store.sealing import MESSAGE

_ROSTER, _INBOX, _CONFIRMATIONS = 1, 2, 5  # numbers in the mail of a device that went on so far
MADE_ANEW = b""  # a message that the cohort's log gives again


async def put(connection: Connection, letters: Iterable[tuple[str, int, bytes]]) -> None:
    """Insert (session, number from 1, signed message)."""
    cells = cells_of(connection)
    rows = [
        {
            "session": session,
            "number": number,
            "message": cells.seal(MESSAGE, (session, number), message),
        }
        for session, number, message in letters
    ]
    if rows:
        await connection.execute(sa.insert(mail), rows)


async def last_numbers(connection: Connection, cohort: str) -> dict[str, int]:
    """Session -> number of its last message, 0 if it has none, of a cohort's devices."""
    rows = await connection.execute(
        sa.select(sessions.c.session, sa.func.max(mail.c.number).label("last"))
        .outerjoin(mail, mail.c.session == sessions.c.session)
        .where(sessions.c.cohort == cohort)
        .group_by(sessions.c.session)
    )
    return {row.session: row.last or 0 for row in rows}


async def message(connection: Connection, session: str, number: int) -> bytes | None:
    found: bytes | None = await connection.scalar(
        sa.select(mail.c.message).where(mail.c.session == session, mail.c.number == number)
    )
    return None if found is None else cells_of(connection).open(MESSAGE, (session, number), found)


async def forget_bulk(connection: Connection, cohort: str) -> None:
    """Remove rosters, inboxes and confirmations, nearly all the bytes of a cohort's mail.

    Who has not fetched a roster or an inbox was left out; what says so, and every later message,
    stays. Who has confirmed needs no more than the receipt.
    """
    later = mail.alias()
    members = sa.select(sessions.c.session).where(sessions.c.cohort == cohort)
    went_on = sa.exists().where(later.c.session == mail.c.session, later.c.number > mail.c.number)
    await connection.execute(
        sa.delete(mail).where(
            mail.c.session.in_(members),
            sa.or_(
                mail.c.number == _ROSTER,
                sa.and_(mail.c.number.in_((_INBOX, _CONFIRMATIONS)), went_on),
            ),
        )
    )
