"""What the first version stored, brought to the present one."""

from __future__ import annotations

import asyncio
import gzip
import shutil
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa

from aggregator.store import migrations
from dp.ledger.verification import verify_ledger
from secagg.secret import Secret
from tests.kits.service import Served, devices, finished, run


async def audited(server: Served) -> Any:
    await server.service.ledger.publish()
    folder: Path = server.service.ledger.folder

    def read(path: str) -> bytes | None:
        return (folder / path).read_bytes() if (folder / path).is_file() else None

    result = verify_ledger(read, server.service.ledger.verifier)
    assert result.verified, result.problems
    (task,) = result.tasks
    return task


STORED = Path(__file__).parents[1] / "vectors" / "stored-0453a63" / "service"
FIRST_PARTNER = Secret(b"p" * 32)


def first_version(folder: Path) -> Path:
    """A copy of what a service of the first version left, with a cohort open."""
    shutil.copytree(STORED, folder, dirs_exist_ok=True)
    for private in (folder / "replica.id", *(folder / "keys").iterdir()):
        private.chmod(0o600)  # a checkout of the repository does not keep that
    packed = folder / "secagg.db.gz"
    (folder / "secagg.db").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return folder


async def goes_on(server: Served) -> None:
    """Nothing of the first version's data is lost, its open cohort ends, and the task goes on."""
    view = await server.until(lambda view: view["cohort"] is None)
    assert (view["version"], view["charges"]) == (1, 2)
    assert [r["outcome"] for r in view["releases"]] == ["released", "charged"]
    task = await audited(server)
    assert [r.entry.outcome for r in task.releases] == ["released", "charged"]
    assert task.releases[1].entry.fault == "service"
    fleet = devices(server, 4, partner=FIRST_PARTNER)
    assert finished(await asyncio.wait_for(run(fleet), 30.0)) == 4
    assert len((await audited(server)).releases) == 3


def migrated(connection: sa.Connection, revision: str) -> None:
    """Bring an empty database to a revision, or another back to it."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["connection"] = connection
    empty = not sa.inspect(connection).get_table_names()
    (alembic.command.upgrade if empty else alembic.command.downgrade)(config, revision)
