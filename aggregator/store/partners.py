"""Partners, those that were removed, and the newest revocation list of each.

A function that takes a connection works in its caller's transaction. Keys are hex.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import sqlalchemy as sa

from aggregator.store.database import Connection, Database, cells_of
from aggregator.store.schema import partners, removed_partners, revocation_lists, revoked
from aggregator.store.sealing import LIST, OVERHEAD_BYTES, REVOKED_DEVICE, Cells
from aggregator.views import PartnerView
from secagg.http_api import Revocations

_ROWS_AT_ONCE = 1_000  # the event loop makes their parameters


async def keys(connection: Connection) -> list[str]:
    return list((await connection.execute(sa.select(partners.c.partner_key))).scalars())


async def keys_and_names(connection: Connection) -> list[tuple[str, str]]:
    rows = await connection.execute(sa.select(partners.c.partner_key, partners.c.name))
    return [(row.partner_key, row.name) for row in rows]


async def removed_keys(connection: Connection) -> list[str]:
    """Keys of partners that took part before."""
    rows = await connection.execute(sa.select(removed_partners.c.partner_key))
    return list(rows.scalars())


async def takes_part(database: Database, key: str) -> bool:
    query = sa.select(partners.c.name).where(partners.c.partner_key == key)
    return bool(await database.few(query))


async def takes_part_in(connection: Connection, key: str) -> bool:
    """As :func:`takes_part`, within a transaction."""
    query = sa.select(partners.c.name).where(partners.c.partner_key == key)
    return await connection.scalar(query) is not None


async def views(database: Database) -> tuple[PartnerView, ...]:
    """All partners, those first that came first."""
    rows = await database.rows(sa.select(partners).order_by(partners.c.added_at))
    return tuple(msgspec.convert(row, PartnerView, from_attributes=True) for row in rows)


async def add(connection: Connection, key: str, name: str, now: float) -> bool:
    """Insert a partner; returns whether it was removed before.

    Raises:
        Conflict: at the transaction's end, if the key has a name.
    """
    await connection.execute(sa.insert(partners).values(partner_key=key, name=name, added_at=now))
    back = await connection.execute(
        sa.delete(removed_partners).where(removed_partners.c.partner_key == key)
    )
    return bool(back.rowcount)


async def remove(connection: Connection, key: str, now: float) -> None:
    await connection.execute(sa.delete(partners).where(partners.c.partner_key == key))
    await connection.execute(sa.insert(removed_partners).values(partner_key=key, removed_at=now))


# -- revocation lists ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LastList:
    """``digest``: hex, of the signed list."""

    number: int
    digest: str


async def last_list(connection: Connection, partner: str) -> LastList | None:
    found = await connection.execute(
        sa.select(revocation_lists.c.number, revocation_lists.c.digest).where(
            revocation_lists.c.partner == partner
        )
    )
    row = found.first()
    return None if row is None else LastList(**row._mapping)


class SealedDevice(NamedTuple):
    """``name``: hashed identity, hex. ``sealed``: the identity key."""

    name: str
    sealed: bytes


def sealed_devices(cells: Cells, partner: str, devices: Iterable[bytes]) -> list[SealedDevice]:
    """Rows of the devices with these identity keys. 0.1 ms each: call it in a thread."""
    named = [(cells.name(key.hex()), key) for key in devices]
    return [
        SealedDevice(name, cells.seal(REVOKED_DEVICE, (partner, name), key)) for name, key in named
    ]


async def replace_list(
    connection: Connection,
    partner: str,
    *,
    number: int,
    digest: str,
    signed: bytes,
    devices: Sequence[SealedDevice],
    now: float,
) -> None:
    """Store a partner's list in the place of its last one. ``devices``: in it."""
    for table in (revocation_lists, revoked):
        await connection.execute(sa.delete(table).where(table.c.partner == partner))
    cells = cells_of(connection)
    await connection.execute(
        sa.insert(revocation_lists).values(
            partner=partner,
            number=number,
            digest=digest,
            signed=cells.seal(LIST, (partner,), signed),
            received_at=now,
        )
    )
    for start in range(0, len(devices), _ROWS_AT_ONCE):
        rows = devices[start : start + _ROWS_AT_ONCE]
        values = [{"partner": partner, "identity": row.name, "device": row.sealed} for row in rows]
        await connection.execute(sa.insert(revoked), values)


async def lists_of(database: Database, keys: Sequence[bytes]) -> tuple[Revocations, ...]:
    """What devices are told of the newest lists of these partners."""
    rows = await database.few(
        sa.select(
            revocation_lists.c.partner,
            revocation_lists.c.number,
            revocation_lists.c.digest,
            sa.func.length(revocation_lists.c.signed).label("size"),
        ).where(revocation_lists.c.partner.in_([key.hex() for key in keys]))
    )
    return tuple(
        Revocations(
            partner=bytes.fromhex(row.partner),
            number=row.number,
            digest=bytes.fromhex(row.digest),
            size_bytes=row.size - OVERHEAD_BYTES,
        )
        for row in rows
    )


async def signed_list(database: Database, digest: str) -> bytes | None:
    """The revocation list with this digest, hex."""
    rows = await database.rows(
        sa.select(revocation_lists.c.partner, revocation_lists.c.signed).where(
            revocation_lists.c.digest == digest
        )
    )
    cells = database.cells
    return cells.open(LIST, (rows[0].partner,), rows[0].signed) if rows else None
