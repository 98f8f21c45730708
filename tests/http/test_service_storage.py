"""What the service does not store, or not for good: rosters, inboxes, logs, old models."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from aggregator.cohorts.janitor import Janitor
from aggregator.store import models
from aggregator.store.blobs import BlobStore
from aggregator.store.schema import tasks
from aggregator.store.tasks import insert_version
from secagg import http_api
from tests.kits.service import TASK, Device, Served, devices, finished, run, served, spec


def stored_bytes(server: Served, query: str) -> int:
    with sqlite3.connect(server.settings.data_dir / "secagg.db") as database:
        return int(database.execute(query).fetchone()[0] or 0)


async def asked_again(device: Device, after: int) -> tuple[int, bytes | str]:
    """(status, next message after so many, or the reason of a refusal)."""
    status, body = await device.request("GET", f"{device.session}/messages?after={after}")
    if status != 200:
        return status, str(msgspec.json.decode(body)["reason"])
    return status, msgspec.json.decode(body, type=http_api.Mail).messages[0]


async def test_rosters_and_inboxes_are_made_anew_and_not_stored(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        asking = fleet[2]
        seated: list[int] = []  # its place in the roster: the first one's roster is kept
        told: dict[str, list[tuple[int, bytes | str]]] = {}

        async def ask(name: str) -> None:
            if name in ("deals", "ready"):
                after = asking.after - 1
                before = await asked_again(asking, after)
                await server.restart()  # whoever takes the cohort up has its log alone
                told[name] = [before, await asked_again(asking, after)]
            elif name == "header":
                told[name] = [await asked_again(asking, 0)]
                own = f"session = '{asking.session.rpartition('/')[2]}'"
                place = f"SELECT roster_index FROM sessions WHERE {own}"  # noqa: S608  ours
                seated.append(stored_bytes(server, place))
                large = "SELECT sum(length(message)) FROM mail WHERE number <= 2 AND session != "
                first = "(SELECT session FROM sessions WHERE roster_index = 0)"
                assert stored_bytes(server, large + first) == 0
                log = "SELECT sum(length(payload)) FROM cohort_events"
                mail = "SELECT sum(length(message)) FROM mail"
                assert stored_bytes(server, mail) < stored_bytes(server, log)

        asking.hold = ask
        assert finished(await run(fleet)) == 4
        for name in ("deals", "ready"):
            (status, first), second = told[name]
            assert status == 200
            assert len(first) > 2_000
            assert second == (status, first)
        if seated != [0]:
            assert told["header"] == [(409, "session-stale")]  # nobody needs them any more
        assert stored_bytes(server, "SELECT count(*) FROM cohort_events") == 0


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared with a kept version"])
async def test_of_a_task_s_models_the_newest_stay(tmp_path: Path, shared: bool) -> None:
    async with served(tmp_path, spec()) as server:
        core = server.service.core
        stored, states = [], []
        for version in range(1, 68):
            state = {"m": np.full(4, version, np.float64)}
            stored.append(models.store(core.blobs, TASK, version, np.zeros(4, np.float32)))
            if shared and version == 67:  # as equal states of before do
                states.append(states[0])
            else:
                states.append(models.store_optimiser(core.blobs, TASK, version, state))
            async with core.database.write() as connection:
                await insert_version(connection, TASK, version, stored[-1], states[-1], 0.0, 1)
        async with core.database.write() as connection:
            await connection.execute(sa.update(tasks).values(version=67))
        await Janitor(core).sweep()
        kept = {file.name for file in core.blobs.path("models").iterdir()}
        assert kept == {each.digest.hex() for each in stored[2:]}  # 65 of them
        of_states = {file.name for file in core.blobs.path("optimisers").iterdir()}
        wanted = states[2:] + (states[:1] if shared else [])
        assert of_states == {state.hex() for state in wanted if state}
        status = (await server.operator("GET", f"/tasks/{TASK}"))[0]
        assert status == 200
        assert stored_bytes(server, "SELECT min(version) FROM versions") == 3


def test_equal_states_of_two_versions_have_files_of_their_own(tmp_path: Path) -> None:
    """A sweep that forgets the older one takes nothing from a release under way."""
    blobs, state = BlobStore(tmp_path), {"m": np.zeros(4)}
    first, second = (models.store_optimiser(blobs, TASK, version, state) for version in (1, 68))
    assert first != second
    assert models.store_optimiser(blobs, TASK, 1, state) == first  # tried again
    assert first is not None
    models.forget(blobs, (), (first.hex(),))
    np.testing.assert_array_equal(models.load_optimiser(blobs, second)["m"], state["m"])
