"""Sealed cells of the database: bound to their place, under a list of keys that rotates."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from aggregator.keys import load_keys
from aggregator.store import resealing
from aggregator.store.schema import bans, metadata
from aggregator.store.sealing import EVENT, MESSAGE, SEALED, CellRefused, Cells
from aggregator.views import BanView
from secagg.errors import ConfigurationError
from secagg.secret import Secret
from secagg_cli.main import app
from tests.kits.sealed import CELLS
from tests.kits.service import Served, served
from tests.kits.starting import refused

DEVICES = ["ab" * 32, "cd" * 32]


def test_a_cell_opens_in_its_place_alone() -> None:
    cell = CELLS.seal(EVENT, ("c", 1), b"a share")
    assert CELLS.open(EVENT, ("c", 1), cell) == b"a share"
    assert b"a share" not in cell
    elsewhere = [(EVENT, ("c", 2)), (EVENT, ("d", 1)), (MESSAGE, ("c", 1))]
    for place, row in elsewhere:
        with pytest.raises(CellRefused) as caught:
            CELLS.open(place, row, cell)
        assert (caught.value.reason, bool(caught.value.remedy)) == ("cell-moved", True)
    for changed in (cell[:-1], cell[:-1] + bytes([cell[-1] ^ 1]), b"a share in plain text" * 9):
        with pytest.raises(CellRefused):
            CELLS.open(EVENT, ("c", 1), changed)
    assert CELLS.open(EVENT, ("c", 1), CELLS.seal(EVENT, ("c", 1), b"")) == b""


def test_the_first_key_seals_and_all_open() -> None:
    old, new = Secret(secrets.token_bytes(32)), Secret(secrets.token_bytes(32))
    names = Secret(bytes(32))
    before, both, after = (Cells(keys, names) for keys in ([old], [new, old], [new]))
    cell = before.seal(EVENT, ("c", 1), b"x")
    assert both.open(EVENT, ("c", 1), cell) == b"x"
    assert not both.is_current(cell)
    assert both.is_current(both.seal(EVENT, ("c", 1), b"x"))
    with pytest.raises(CellRefused, match="sealing-key-missing") as caught:
        after.open(EVENT, ("c", 1), cell)
    assert (caught.value.expected, caught.value.found) == (after.sealing, before.sealing)


async def banned(server: Served) -> tuple[BanView, ...]:
    return tuple(await server.service.membership.bans())


async def two_bans(server: Served) -> None:
    for device in DEVICES:
        status, _ = await server.operator("POST", f"/devices/{device}/ban", {"note": ""})
        assert status == 200


async def test_two_rows_that_trade_their_cells_are_refused(
    tmp_path: Path, database_url: str
) -> None:
    async with served(tmp_path, database_url=database_url) as server:
        await two_bans(server)
        assert {ban.device for ban in await banned(server)} == set(DEVICES)
        database = server.service.core.database
        first, second = await database.rows(bans.select())
        assert not {first.identity, second.identity} & set(DEVICES)
        async with database.write() as connection:
            for row, device in ((first, second.device), (second, first.device)):
                here = bans.c.identity == row.identity
                await connection.execute(sa.update(bans).where(here).values(device=device))
        with pytest.raises(CellRefused, match="cell-moved"):
            await banned(server)
        with pytest.raises(CellRefused, match="cell-moved"):
            await resealing.opened(database)


async def db(data: Path, command: str) -> Any:
    words = ["db", command, "--data-dir", str(data), "--format", "json"]
    done = await asyncio.to_thread(CliRunner().invoke, app, words)
    return json.loads(done.stdout)


def add_first(file: Path) -> str:
    """Put a new key before the others; the file as it was."""
    before = file.read_text()
    file.write_text(secrets.token_hex(32) + "\n" + before)
    return before


async def test_keys_rotate_and_an_old_one_goes_when_nothing_needs_it(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys" / "sealing.keys"
    settings = {"data_dir": tmp_path, "database_url": database_url}
    monkeypatch.setenv("SECAGG_DATABASE_URL", database_url)  # for the commands

    async def goes_on() -> None:
        async with served(**settings) as server:
            assert {ban.device for ban in await banned(server)} == set(DEVICES)

    async with served(**settings) as server:
        await two_bans(server)
    old = add_first(file)
    new = file.read_text().split()[0]
    await goes_on()
    file.write_text(new)
    assert (await refused(settings)).reason == "sealing-key-missing"
    file.write_text(f"{new}\n{old}")
    assert (await db(tmp_path, "reseal"))["resealed"] == 2
    file.write_text(new)
    assert (await db(tmp_path, "check"))["sealed_cells"] == 2
    await goes_on()
    file.write_text(old)  # the way back is closed
    assert (await refused(settings)).reason == "sealing-key-missing"


async def test_a_replica_with_sealing_keys_of_its_own_does_not_start(
    tmp_path: Path, database_url: str
) -> None:
    async with served(tmp_path / "one", database_url=database_url):
        keys = tmp_path / "two" / "keys"
        load_keys(keys)
        for name in ("task.key", "ledger.key"):
            (keys / name).write_bytes((tmp_path / "one" / "keys" / name).read_bytes())
        error = await refused({"data_dir": tmp_path / "two", "database_url": database_url})
        assert error.reason == "sealing-key-missing"


@pytest.mark.parametrize("text", ["", "ab", "zz" * 32, f"{'ab' * 32}\nab"])
def test_a_file_of_sealing_keys_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    load_keys(tmp_path)
    (tmp_path / "sealing.keys").write_text(text)
    with pytest.raises(ConfigurationError, match="key-malformed"):
        load_keys(tmp_path)


def test_every_sealed_column_is_listed_and_known() -> None:
    """What has the place of a name or of bytes that devices sent is sealed, or said not to be."""
    listed = {(place.table, place.column) for place in SEALED}
    open_ = {
        ("tasks", "manifest"),
        ("tasks", "manifest_signature"),
        ("ledger_leaves", "record"),
    }
    binary = {
        (table.name, column.name)
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, sa.LargeBinary)
    }
    assert binary == listed | open_
    text = (Path(__file__).parents[4] / "docs" / "operations.md").read_text()
    for table, column in listed:
        assert f"`{table}.{column}`" in text
    for place in SEALED:
        keys = {column.name for column in metadata.tables[place.table].primary_key}
        assert keys == set(place.row), place
