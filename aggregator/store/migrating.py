"""Versions of the schema, and the ways between them (alembic).

A service makes the schema of a new database, and brings an older SQLite file up, which the lock of
its data folder keeps from others. A database of PostgreSQL may have other replicas at work on it:
there ``secagg db upgrade`` does it, once all of them have stopped.
"""

from __future__ import annotations

import functools
from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from secagg.errors import ConfigurationError

NEWEST = "head"


def _config(connection: sa.Connection | None = None) -> alembic.config.Config:
    config = alembic.config.Config()
    scripts = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", scripts.replace("%", "%%"))  # it interpolates
    config.attributes["connection"] = connection
    return config


def of_code() -> str:
    """The version that this software works with."""
    return known()[-1]


@functools.cache
def known() -> tuple[str, ...]:
    """All versions that this software knows, the oldest first."""
    scripts = ScriptDirectory.from_config(_config())
    return tuple(script.revision for script in scripts.walk_revisions())[::-1]


def is_sealed(found: str | None) -> bool:
    """Whether databases of this version have sealed cells."""
    return found is not None and found in known()[known().index("0010") :]


def of_database(connection: sa.Connection) -> str | None:
    """None: there is no schema yet."""
    return MigrationContext.configure(connection).get_current_revision()


def demand_known(found: str | None) -> None:
    """
    Raises:
        ConfigurationError: ``schema-newer``.
    """
    if found is not None and found not in known():
        raise ConfigurationError(
            "schema-newer",
            "The database has a schema that this software does not know: a newer one made it.",
            expected=of_code(),
            found=found,
            remedy="Run the newer software. To go back, stop all replicas and run its "
            f"`secagg db downgrade --to {of_code()}`. Nothing was changed.",
        )


def demand_present(found: str | None) -> None:
    """
    Raises:
        ConfigurationError: ``schema-newer``; ``schema-older``, also where there is none yet.
    """
    demand_known(found)
    if found != of_code():
        raise ConfigurationError(
            "schema-older",
            "The database has an older schema than this software works with.",
            expected=of_code(),
            found=found or "none",
            remedy="Stop all replicas, make a backup, run `secagg db upgrade` with the settings of "
            "the service, and start the replicas anew. Nothing was changed.",
        )


def upgrade(connection: sa.Connection, target: str = NEWEST) -> None:
    _move(connection, target, up=True)


def downgrade(connection: sa.Connection, target: str) -> None:
    """At the lowest to the first version: nothing removes all that a service has."""
    _move(connection, target, up=False)


def _move(connection: sa.Connection, target: str, *, up: bool) -> None:
    """
    Raises:
        ConfigurationError: ``schema-newer``; ``schema-unknown``: not a version in that direction.
    """
    found = of_database(connection)
    demand_known(found)
    versions = known()
    here = -1 if found is None else versions.index(found)
    allowed = versions[max(here, 0) :] if up else versions[: here + 1]
    if target not in allowed and not (up and target == NEWEST):
        raise ConfigurationError(
            "schema-unknown",
            f"The schema cannot be brought {'up' if up else 'down'} to this version.",
            expected=", ".join(allowed) or "none: the database is empty",
            found=target,
        )
    command = alembic.command.upgrade if up else alembic.command.downgrade
    try:
        command(_config(connection), target)
    except CommandError as error:
        raise ConfigurationError("schema-unknown", f"{error}.") from error
