"""A folder or a database that the operator names may hold other people's things."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from aggregator.cohorts.janitor import Janitor
from aggregator.settings.options import Settings
from aggregator.store.database import Database
from dp.ledger.records import policy_record
from dp.tlog import notes
from secagg.errors import ConfigurationError
from secagg.secret import Secret
from tests.kits.service import served


async def test_the_janitor_removes_nothing_that_is_not_ours(tmp_path: Path) -> None:
    data = tmp_path / "data"
    theirs = [
        "uploads/holiday/0",
        "blobs/partial/thesis/file",
        f"uploads/{'cd' * 32}/photo.jpg",
        f"uploads/{'cd' * 32}/1/0",
        f"blobs/partial/{'cd' * 32}/thesis",
        "elsewhere/0",
    ]
    ours = [
        f"uploads/{'ab' * 32}/0",
        f"uploads/{'cd' * 32}/0",
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
    for place in ("uploads", "blobs/partial"):
        assert not (data / place / ("ab" * 32)).exists()


async def test_another_service_s_ledger_is_not_written_over(tmp_path: Path) -> None:
    checkpoint = tmp_path / "data" / "ledger" / "checkpoint"
    checkpoint.parent.mkdir(parents=True)
    others = notes.sign_checkpoint(notes.Checkpoint("other", 7, bytes(32)), Secret(b"o" * 32))
    checkpoint.write_bytes(others)
    with pytest.raises(ConfigurationError, match="ledger-folder-taken"):
        async with served(tmp_path / "data"):
            pass
    assert checkpoint.read_bytes() == others


async def test_a_ledger_of_the_same_key_is_gone_on_with(tmp_path: Path) -> None:
    for name in ("first", "second"):
        async with served(tmp_path / "data", ledger_name=name):
            pass


async def grown(data: Path, count: int, salt: int = 0) -> bytes:
    """The checkpoint of a service after so many more records."""
    async with served(data) as server:
        ledger = server.service.ledger
        async with server.service.core.database.write() as connection:
            records = [policy_record("t", "paused", 2**31 + salt + n) for n in range(count)]
            await ledger.append(connection, records)
        await ledger.publish()
        return (ledger.folder / "checkpoint").read_bytes()


def move_database(source: Path, target: Path) -> None:
    """In the place of what is there, with its log of writes."""
    for old in target.glob("secagg.db*"):
        old.unlink()
    for file in source.glob("secagg.db*"):
        file.rename(target / file.name)


@pytest.mark.parametrize(
    ("more", "reason"), [(0, "ledger-rolled-back"), (1, "ledger-rolled-back"), (5, "ledger-forked")]
)
async def test_a_database_that_does_not_extend_the_published_ledger_is_not_served(
    tmp_path: Path, more: int, reason: str
) -> None:
    """An older backup, or another database: a second history would be signed, and never mended."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    await grown(data, 3)
    move_database(data, tmp_path)
    if more:
        shutil.copytree(data / "keys", elsewhere / "keys")
        await grown(elsewhere, more, salt=100)
        move_database(elsewhere, data)
    published = (data / "ledger" / "checkpoint").read_bytes()
    with pytest.raises(ConfigurationError, match=reason) as caught:
        async with served(data):
            pass
    assert str(data / "ledger" / "checkpoint") in str(caught.value)
    assert "3 leaves" in str(caught.value.expected)
    assert (data / "ledger" / "checkpoint").read_bytes() == published
    move_database(tmp_path, data)  # its own is gone on with
    await grown(data, 2)


async def test_another_program_s_database_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "secagg.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    before = file.read_bytes()
    for content in (before, b"no database at all" * 100):
        file.write_bytes(content)
        database = Database(Settings(data_dir=tmp_path).database)
        with pytest.raises(ConfigurationError, match="database-taken"):
            await database.migrate()
        await database.close()
        assert file.read_bytes() == content
