"""Cells with secrets or names of devices are sealed; devices are looked up by a keyed hash.

The way down opens them again, for which it needs the keys that sealed them.
"""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

from aggregator.store.sealing import (
    ADVERT,
    BAN_DEVICE,
    BAN_EVIDENCE,
    EVENT,
    LIST,
    MESSAGE,
    NOT_DEALING_DEVICE,
    REFUSAL_DEVICE,
    REFUSAL_TARGET,
    REVOKED_DEVICE,
    SESSION_DEVICE,
    STRIKE_DEVICE,
    Cells,
    Place,
)

revision = "0010"
down_revision = "0011"
branch_labels = None
depends_on = None

_DEVICES = (  # where the identity key stands sealed, and the column with its hash
    (SESSION_DEVICE, "identity"),
    (BAN_DEVICE, "identity"),
    (STRIKE_DEVICE, "identity"),
    (REFUSAL_DEVICE, "identity"),
    (REFUSAL_TARGET, "target"),
    (REVOKED_DEVICE, "identity"),
    (NOT_DEALING_DEVICE, "identity"),
)
_CONTENTS = (EVENT, MESSAGE, ADVERT, BAN_EVIDENCE, LIST)
_FACTS = sa.table("service_facts", sa.column("name"), sa.column("value"))


def upgrade() -> None:
    connection = op.get_bind()
    cells: Cells = connection.get_execution_options()["cells"]
    for place, _ in _DEVICES:
        column = sa.Column(place.column, sa.LargeBinary(), nullable=False, server_default="")
        op.add_column(place.table, column)
    rows = _each(
        connection,
        "contributions",
        ("cohort", "identity"),
        (),
        lambda row: {"identity": cells.name(str(row["identity"]))},
    )
    for table in dict.fromkeys(place.table for place, _ in _DEVICES):
        named = [(place, column) for place, column in _DEVICES if place.table == table]

        def seal_devices(
            row: dict[str, object], named: list[tuple[Place, str]] = named
        ) -> dict[str, object]:
            hashed = {column: cells.name(str(row[column])) for _, column in named}
            key = {**row, **hashed}
            sealed = {
                place.column: cells.seal(
                    place, [key[name] for name in place.row], bytes.fromhex(str(row[column]))
                )
                for place, column in named
            }
            return {**hashed, **sealed}

        columns = [column for _, column in named]
        rows += _each(connection, table, named[0][0].row, columns, seal_devices)
    for place in _CONTENTS:

        def seal(row: dict[str, object], place: Place = place) -> dict[str, object]:
            key = [row[name] for name in place.row]
            return {place.column: cells.seal(place, key, _bytes(row[place.column]))}

        rows += _each(connection, place.table, place.row, [place.column], seal)
    _forget_keys(connection)
    # A replica without this key must not start. An empty database is of whoever enters it first,
    # which of two services that begin at once may be the other one.
    if rows:
        connection.execute(sa.insert(_FACTS).values(name="sealing-keys", value=cells.sealing))


def _forget_keys(connection: sa.Connection) -> None:
    connection.execute(sa.delete(_FACTS).where(_FACTS.c.name == "sealing-keys"))


def downgrade() -> None:
    connection = op.get_bind()
    cells: Cells = connection.get_execution_options()["cells"]
    for place in _CONTENTS:

        def unseal(row: dict[str, object], place: Place = place) -> dict[str, object]:
            key = [row[name] for name in place.row]
            return {place.column: cells.open(place, key, _bytes(row[place.column]))}

        _each(connection, place.table, place.row, [place.column], unseal)
    identities = {}
    for place, column in _DEVICES:
        for row in _rows(connection, place.table, (*place.row, column, place.column)):
            plain = cells.open(place, [row[name] for name in place.row], _bytes(row[place.column]))
            identities[row[column]] = plain.hex()
    tables = {place.table: place.row for place, _ in _DEVICES}
    for table, key in {**tables, "contributions": ("cohort", "identity")}.items():
        columns = [column for place, column in _DEVICES if place.table == table] or ["identity"]

        def name(row: dict[str, object], columns: list[str] = columns) -> dict[str, object]:
            return {column: identities.get(row[column], row[column]) for column in columns}

        _each(connection, table, key, columns, name)
    for place, _ in _DEVICES:
        op.drop_column(place.table, place.column)
    _forget_keys(connection)


def _rows(
    connection: sa.Connection, table: str, columns: tuple[str, ...]
) -> list[dict[str, object]]:
    wanted: list[sa.ColumnElement[Any]] = [sa.column(name) for name in dict.fromkeys(columns)]
    found = connection.execute(sa.select(*wanted).select_from(sa.table(table)))
    return [dict(row) for row in found.mappings()]


def _each(
    connection: sa.Connection,
    table: str,
    key: tuple[str, ...],
    columns: list[str] | tuple[str, ...],
    changed: Callable[[dict[str, object]], dict[str, object]],
) -> int:
    """Rewrite each row of a table: ``key`` names it, ``columns`` are read beside it. How many there
    were."""
    wanted = tuple(dict.fromkeys((*key, *columns)))
    devices = [place.column for place, _ in _DEVICES if place.table == table]
    target = sa.table(table, *(sa.column(name) for name in (*wanted, *devices)))
    keys = _rows(connection, table, key)
    for row in keys:
        here = sa.and_(*(target.c[name] == row[name] for name in key))
        chosen = sa.select(*(target.c[name] for name in wanted)).where(here)
        (found,) = connection.execute(chosen).mappings()
        connection.execute(sa.update(target).where(here).values(changed(dict(found))))
    return len(keys)


def _bytes(value: object) -> bytes:
    """SQLite gives a default as a text."""
    return value.encode() if isinstance(value, str) else bytes(value)  # type: ignore[call-overload]
