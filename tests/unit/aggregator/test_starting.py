"""A replica that does not belong to its database, or shares its data folder, does not start."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from aggregator.keys import load_keys
from aggregator.starting import DataFolder, facts_of
from aggregator.store import identity, migrating
from aggregator.store.database import Database
from secagg.errors import ConfigurationError
from tests.kits.sealed import CELLS
from tests.kits.service import Served, served, spec
from tests.kits.starting import refused
from tests.kits.upgrades import first_version

NAME = "secagg.local/ledger"


def replicas(
    tmp_path: Path, database_url: str, **settings: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of two replicas of one database and blob folder, each with a data folder, and so
    keys, of its own."""
    shared = {"database_url": database_url, "blob_dir": tmp_path / "blobs"}
    first = {"data_dir": tmp_path / "one", **shared}
    return first, {"data_dir": tmp_path / "two", **shared, **settings}


async def test_a_replica_with_other_keys_does_not_start(tmp_path: Path, database_url: str) -> None:
    first, second = replicas(tmp_path, database_url)
    async with served(**first) as server:
        own = facts_of(server.service.core.keys, NAME)
        error = await refused(second)
        other = facts_of(load_keys(tmp_path / "two" / "keys"), NAME)
    assert error.reason == "keys-of-another-service"
    assert (error.expected, error.found) == (own["task-key"], other["task-key"])
    async with served(**second, keys_dir=tmp_path / "one" / "keys"):
        pass


async def test_one_key_that_differs_is_named(tmp_path: Path, database_url: str) -> None:
    first, second = replicas(tmp_path, database_url)
    async with served(**first):
        keys = tmp_path / "two" / "keys"
        load_keys(keys)
        (keys / "task.key").write_bytes((tmp_path / "one" / "keys" / "task.key").read_bytes())
        error = await refused(second)
    assert error.reason == "keys-of-another-service"
    assert "ledger.key" in error.message


async def test_a_replica_with_another_ledger_name_does_not_start(
    tmp_path: Path, database_url: str
) -> None:
    first, second = replicas(
        tmp_path, database_url, keys_dir=tmp_path / "one" / "keys", ledger_name="other"
    )
    async with served(**first):
        error = await refused(second)
    assert (error.reason, error.expected, error.found) == ("ledger-name-differs", NAME, "other")


async def test_of_two_services_that_begin_on_one_database_one_wins(
    tmp_path: Path, database_url: str
) -> None:
    first, second = replicas(tmp_path, database_url)
    both = [Served(**first), Served(**second)]
    try:
        ends = await asyncio.gather(*(each.start() for each in both), return_exceptions=True)
        (refusal,) = [end for end in ends if end is not None]
        assert isinstance(refusal, ConfigurationError)
        assert refusal.reason == "keys-of-another-service"
        winner = both[ends.index(None)]
        core = winner.service.core
        known = await identity.read(core.database)
        assert known.items() >= facts_of(core.keys, NAME).items()
    finally:
        for each in both:
            await each.stop()
            each.release_port()


@pytest.mark.parametrize("other", ["task.key", "ledger.key", "name"])
async def test_a_database_of_before_tells_whose_it_is(tmp_path: Path, other: str) -> None:
    """Its ledger and its manifests do, before anything of a stranger is entered."""
    data = first_version(tmp_path / "data")
    settings: dict[str, Any] = {"data_dir": data}
    if other == "name":
        settings["ledger_name"] = "other"
    else:
        load_keys(tmp_path / "others")
        (data / "keys" / other).write_bytes((tmp_path / "others" / other).read_bytes())
    error = await refused(settings)
    reason = "ledger-name-differs" if other == "name" else "keys-of-another-service"
    assert error.reason == reason
    assert other == "name" or other in error.message
    database = Database(f"sqlite+aiosqlite:///{data / 'secagg.db'}", CELLS)
    assert await identity.read(database) == {}
    await database.close()


async def test_a_schema_that_is_newer_than_the_software_is_refused(
    tmp_path: Path, database_url: str
) -> None:
    settings = {"data_dir": tmp_path / "data", "database_url": database_url}
    async with served(**settings) as server, server.service.core.database.write() as connection:
        newer = sa.text("UPDATE alembic_version SET version_num = '9999'")
        await connection.execute(newer)
    error = await refused(settings)
    found = (error.reason, error.expected, error.found)
    assert found == ("schema-newer", migrating.of_code(), "9999")
    assert "downgrade" in str(error.remedy)


async def test_a_second_process_on_a_data_folder_does_not_start(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data, spec()):
        error = await refused({"data_dir": data})
        assert error.reason == "data-dir-in-use"
    async with served(data):  # freed at the end
        pass


def test_the_lock_of_a_data_folder_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from aggregator.starting import DataFolder; "
        "folder = DataFolder(pathlib.Path(sys.argv[1])); folder.take(); "
        "print('has it', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"has it\n"
        folder = DataFolder(tmp_path)
        with pytest.raises(ConfigurationError, match="data-dir-in-use") as caught:
            folder.take()
        assert caught.value.found == f"process {holder.pid}"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    folder.take()
    folder.release()
