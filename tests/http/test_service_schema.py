"""The schema of a PostgreSQL: who makes it, who moves it, and who does not."""

import asyncio

import pytest

from aggregator.maintenance import Maintenance
from aggregator.settings.options import Settings
from aggregator.store import migrating
from aggregator.store.database import Database
from secagg.errors import ConfigurationError
from tests.kits.replicas import pair
from tests.kits.sealed import CELLS
from tests.kits.service import Served, served
from tests.kits.starting import refused


async def test_an_older_schema_is_left_to_the_operator(tmp_path, postgres_url):
    """Other replicas may be at work on it."""
    async with served(tmp_path / "one", database_url=postgres_url):
        pass
    database = Database(Settings.load(database_url=postgres_url).database, CELLS)
    await database.migrate_down("0002")
    error = await refused({"data_dir": tmp_path / "one", "database_url": postgres_url})
    assert (error.reason, error.expected, error.found) == (
        "schema-older",
        migrating.of_code(),
        "0002",
    )
    assert await database.schema() == "0002"
    await database.close()


async def test_replicas_that_begin_at_once_on_an_empty_database_all_start(tmp_path, postgres):
    shared = {"blob_dir": tmp_path / "blobs", "keys_dir": tmp_path / "keys"}
    for attempt in ("first", "second", "third"):
        shared["database_url"] = await postgres.create()
        replicas = [Served(tmp_path / f"{attempt}-{number}", **shared) for number in range(3)]
        try:
            await asyncio.gather(*(each.start() for each in replicas))
        finally:
            for each in replicas:
                await each.stop()
                each.release_port()


async def test_no_schema_moves_under_running_replicas(tmp_path, postgres_url, postgres):
    """Also at once after the database was restarted under them, before they hold their locks."""
    shared = {"database_url": postgres_url, "keys_dir": tmp_path / "keys"}

    async def downgrade():
        settings = Settings.load(data_dir=tmp_path / "operator", **shared)
        async with Maintenance(settings) as maintenance:
            return (await maintenance.downgrade("0007"))["schema"]

    async with pair(tmp_path, postgres_url):
        with pytest.raises(ConfigurationError, match=r"replicas-running.*2 running"):
            await downgrade()
        await postgres.break_connections(postgres_url)
        with pytest.raises(ConfigurationError, match=r"replicas-running.*2 running"):
            await downgrade()
    assert await downgrade() == "0007"
