"""The ledger in the data folder at the start of a service: its own, which the database extends."""

import shutil
from pathlib import Path

import pytest

from aggregator.maintenance import Maintenance
from aggregator.settings.options import Settings
from dp.ledger.records import policy_record
from dp.tlog import notes
from secagg.errors import ConfigurationError
from secagg.secret import Secret
from tests.kits.service import served


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
    for _ in range(2):
        async with served(tmp_path / "data", ledger_name="first"):
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
    """In the place of what is there, with its log of writes and the blobs that it names."""
    for old in target.glob("secagg.db*"):
        old.unlink()
    shutil.rmtree(target / "blobs", ignore_errors=True)
    for file in (*source.glob("secagg.db*"), source / "blobs"):
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
    if more:
        with pytest.raises(ConfigurationError, match=reason):
            async with Maintenance(Settings.load(data_dir=data)) as maintenance:
                await maintenance.check()
    with pytest.raises(ConfigurationError, match=reason) as caught:
        async with served(data):
            pass
    assert str(data / "ledger" / "checkpoint") in str(caught.value)
    assert "3 leaves" in str(caught.value.expected)
    assert (data / "ledger" / "checkpoint").read_bytes() == published
    move_database(tmp_path, data)  # its own is gone on with
    await grown(data, 2)
