"""A folder or a database that the operator names may hold other people's things."""

import sqlite3
from pathlib import Path

import pytest

from aggregator.cohorts.janitor import Janitor
from aggregator.settings.options import Settings
from aggregator.store.database import Database
from secagg.errors import ConfigurationError
from tests.kits.sealed import CELLS
from tests.kits.service import served


async def test_the_janitor_removes_nothing_that_is_not_ours(tmp_path: Path) -> None:
    data = tmp_path / "data"
    theirs = [
        "uploads/holiday/0",
        "blobs/partial/thesis/file",
        f"uploads/{'cd' * 32}/photo.jpg",
        f"uploads/{'cd' * 32}/1/0",
        f"blobs/partial/{'cd' * 32}/thesis",
        "blobs/uploads/holiday/0/0-5",
        f"blobs/uploads/{'cd' * 32}/1/photo.jpg",
        f"blobs/uploads/{'cd' * 32}/me/0-5",
        "elsewhere/0",
    ]
    ours = [
        f"uploads/{'ab' * 32}/0",
        f"uploads/{'cd' * 32}/0",
        f"blobs/uploads/{'ab' * 32}/0/0-5",
        f"blobs/uploads/{'cd' * 32}/1/5-12",
        f"blobs/uploads/{'cd' * 32}/1/.arriving-{'1' * 16}",
        f"blobs/partial/{'ab' * 32}/{'0' * 16}-3",
        f"blobs/partial/{'ab' * 32}/.{'0' * 16}-4.{'1' * 16}",
    ]
    async with served(data) as server:
        for file in (*theirs, *ours):
            (data / file).parent.mkdir(parents=True, exist_ok=True)
            (data / file).write_text("x")
        (data / "uploads" / ("ef" * 32)).symlink_to(data / "elsewhere")
        await Janitor(server.service.core).sweep()
    assert all((data / file).exists() for file in theirs)
    assert not any((data / file).exists() for file in ours)  # left-overs of cohorts
    for place in ("uploads", "blobs/uploads", "blobs/partial"):
        assert not (data / place / ("ab" * 32)).exists()


async def test_another_program_s_database_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "secagg.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    before = file.read_bytes()
    for content in (before, b"no database at all" * 100):
        file.write_bytes(content)
        database = Database(Settings(data_dir=tmp_path).database, CELLS)
        with pytest.raises(ConfigurationError, match="database-taken"):
            await database.migrate()
        await database.close()
        assert file.read_bytes() == content
