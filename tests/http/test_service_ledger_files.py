"""The files of a service's ledger: a tile that is full has no narrower forms beside it."""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer, unused_port

from aggregator.keys import load_keys
from aggregator.ledger.witnesses import Witnesses
from dp.ledger.records import policy_record
from dp.ledger.verification import verify_ledger
from dp.tlog.notes import open_checkpoint, parse_verifier, verifier_key
from dp.tlog.tiles import TILE_WIDTH
from secagg.keys import identity_public_key
from secagg_cli.witness.service import Witness, build_witness_app
from tests.kits.service import TASK, Served, served, spec
from tests.kits.walls import until
from tests.kits.witnesses import SEEDS


def partial(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.p/*"))


async def test_narrow_tiles_go_once_the_full_one_stands(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        ledger, folder = server.service.ledger, server.settings.data_dir / "ledger"

        async def grow(count: int) -> None:
            async with server.service.core.database.write() as connection:
                size = await ledger.size()
                records = [policy_record(TASK, "paused", 2**31 + size + n) for n in range(count)]
                await ledger.append(connection, records)
            await ledger.publish()

        def verified() -> bool:
            def read(path: str) -> bytes | None:
                file = folder / path
                return file.read_bytes() if file.is_file() else None

            return verify_ledger(read, ledger.verifier).verified

        await grow(3)
        await grow(3)
        shown = ("tile/0/000.p/", "tile/entries/000.p/")
        assert partial(folder) == [f"{at}{width}" for at in shown for width in (1, 4, 7)]
        assert verified()
        await grow(TILE_WIDTH)
        left = partial(folder)
        assert left == ["tile/0/001.p/7", "tile/1/000.p/1", "tile/entries/001.p/7"]
        assert verified()

        # What an earlier version left is removed at the next start.
        stale = folder / "tile" / "0" / "000.p" / "3"
        stale.parent.mkdir()
        stale.write_bytes(b"stale")
        await server.restart()
        assert partial(folder) == left


async def committed(server: Served, at: int) -> int:
    """A record that is in the database, and not in the folder; the log's size then."""
    ledger = server.service.ledger
    async with server.service.core.database.write() as connection:
        await ledger.append(connection, [policy_record(TASK, "paused", 2**31 + at)])
    return int(await ledger.size())


async def shown(server: Served) -> int:
    """The size of the checkpoint that a device is served now."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{server.url}/ledger/checkpoint") as answer,
    ):
        verifier = parse_verifier(server.service.ledger.verifier)
        return open_checkpoint(await answer.read(), verifier).size


async def test_a_device_is_served_all_that_is_committed_also_while_witnesses_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restored device counts its charges in it, and the last cohort is committed when the next
    one forms."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def silent(self: Witnesses, note: bytes, *rest: Any) -> bytes:
        asked.set()
        await answer.wait()
        return note

    async with served(tmp_path, spec()) as server:
        before = await shown(server)
        monkeypatch.setattr(Witnesses, "cosign", silent)
        assert await committed(server, 1) == before + 1
        first = asyncio.create_task(shown(server))
        waits = asyncio.create_task(asked.wait())  # its publication has read the database
        await asyncio.wait({first, waits}, return_when=asyncio.FIRST_COMPLETED)
        assert not first.done()
        assert await committed(server, 2) == before + 2
        second = asyncio.create_task(shown(server))
        answer.set()
        assert await first >= before + 1
        assert await second == before + 2


async def test_what_was_committed_before_a_kill_is_served_after_it(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        size = await committed(server, 1)
        await server.restart()
        checkpoint = server.settings.data_dir / "ledger" / "checkpoint"
        verifier = parse_verifier(server.service.ledger.verifier)
        assert open_checkpoint(checkpoint.read_bytes(), verifier).size == size
        assert await shown(server) == size


async def test_what_another_replica_wrote_is_rendered_and_cosigned_unasked(tmp_path: Path) -> None:
    """Else a replica that nobody asks calls witnesses silent which have signed elsewhere."""
    shared = {
        "database_url": f"sqlite:///{tmp_path / 'shared.db'}",
        "blob_dir": tmp_path / "blobs",
        "keys_dir": tmp_path / "keys",
    }
    ledger_key = identity_public_key(load_keys(tmp_path / "keys").ledger)
    log = verifier_key("secagg.local/ledger", ledger_key)
    watching = Witness(tmp_path / "w.db", "w0.example", SEEDS[0], [log], time.time)
    away = TestServer(build_witness_app(watching))
    urls = {watching.verifier: f"http://127.0.0.1:{unused_port()}"}
    async with (
        served(tmp_path / "one", **shared) as one,
        served(tmp_path / "two", witnesses=urls, witness_retry_s=0.05, **shared) as two,
        away as back,
    ):
        await one.set_up(spec())
        size = await one.service.ledger.size()

        def rendered() -> bytes:
            return (two.service.ledger.folder / "checkpoint").read_bytes()

        await until(lambda: f"\n{size}\n".encode() in rendered())
        assert b"w0.example" not in rendered()
        asking = two.service.ledger._witnesses
        asking._urls = dict.fromkeys(asking._urls, str(back.make_url("")).rstrip("/"))
        await until(lambda: b"w0.example" in rendered())


async def test_an_act_stands_though_the_ledger_s_folder_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, spec()) as server:
        ledger = server.service.ledger

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(ledger, "_write", full)
            status, view = await server.operator("POST", "/tasks/statistics/pause")
            assert (status, view["state"]) == (200, "paused")
        size = await ledger.size()
        checkpoint = ledger.folder / "checkpoint"
        await until(lambda: f"\n{size}\n".encode() in checkpoint.read_bytes())
