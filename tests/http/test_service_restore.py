"""The restore drill of docs/operations.md: a copy of a running service, put back."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from secagg.errors import ConfigurationError
from tests.kits.service import devices, finished, run, served, spec
from tests.kits.upgrades import audited


def back_up(data: Path, copy: Path) -> None:
    """Keys and the ledger first, then the database; the blobs are copied last, by the caller."""
    for folder in ("keys", "ledger"):
        shutil.copytree(data / folder, copy / folder)
    source, target = (sqlite3.connect(each / "secagg.db") for each in (data, copy))
    source.backup(target)
    for connection in (source, target):
        connection.close()


async def test_a_copy_of_a_running_service_is_put_back_and_goes_on(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    async with served(data, spec()) as server:
        assert finished(await run(devices(server, 4))) == 4
        back_up(data, copy)
        assert finished(await run(devices(server, 4))) == 4  # a release comes in between
        shutil.copytree(data / "blobs", copy / "blobs")
        await server.service.ledger.publish()
        newest = data / "ledger" / "checkpoint"
    (tmp_path / "restored").mkdir()
    restored = tmp_path / "restored" / "data"
    shutil.copytree(copy, restored)
    async with served(restored) as server:
        view = await server.view()
        assert (view["version"], view["charges"]) == (1, 1)
        assert len((await audited(server)).releases) == 1
        assert finished(await run(devices(server, 4))) == 4
        assert len((await audited(server)).releases) == 2

    shutil.rmtree(restored)  # beside the newest ledger folder the older database is not taken
    shutil.copytree(copy, restored)
    shutil.copy(newest, restored / "ledger" / "checkpoint")
    with pytest.raises(ConfigurationError, match="ledger-rolled-back"):
        async with served(restored):
            pass
