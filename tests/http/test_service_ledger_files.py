"""The files of a service's ledger: a tile that is full has no narrower forms beside it."""

from __future__ import annotations

from pathlib import Path

from dp.ledger.records import policy_record
from dp.ledger.verification import verify_ledger
from dp.tlog.tiles import TILE_WIDTH
from tests.kits.service import TASK, served, spec


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
