"""The service does not know what its database or its store has done, or they lie to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator import logs
from aggregator.cohorts import driver
from aggregator.cohorts.actor import Cohort
from aggregator.cohorts.adding import Adder
from aggregator.cohorts.ending import Ending
from aggregator.cohorts.log import Replay
from aggregator.cohorts.uploads import Uploads
from aggregator.errors import DatabaseAway
from aggregator.store import cohorts, mail, models, sums
from aggregator.store.blobs import BlobDamaged, BlobMissing, BlobStore
from aggregator.store.database import Connection, Database
from aggregator.store.deltas import NOTHING, make
from aggregator.store.sums import Partial
from dp.ledger.contributors import CONTRIBUTORS
from secagg.errors import RemoteProtocolError
from secagg.server import Received, VectorAdded
from tests.kits.log_lines import lines, of
from tests.kits.service import Device, current_sum, devices, finished, run, served, spec


@pytest.mark.parametrize(("restarts", "status"), [(True, 500), (False, 200)])
async def test_a_sum_that_counts_is_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: bool, status: int
) -> None:
    """The answer to a commit is lost; the database may be away when the service asks after it."""
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        armed, away, tried = False, False, asyncio.Event()
        write, read, commit = Database.write, Database.read, Adder._commit

        @asynccontextmanager
        async def losing(self: Database) -> AsyncIterator[Connection]:
            nonlocal armed, away
            async with write(self) as connection:
                yield connection
            if armed:
                armed, away = False, restarts
                raise OSError("connection lost after COMMIT was sent")

        @asynccontextmanager
        async def absent(self: Database) -> AsyncIterator[Connection]:
            nonlocal away
            if away:
                away = False
                raise OSError("the database restarts")
            async with read(self) as connection:
                yield connection

        async def first(self: Adder, group: object) -> bool:
            nonlocal armed
            armed = not tried.is_set()
            return await commit(self, group)  # type: ignore[arg-type]

        async def hold(name: str) -> None:
            if name == "vector":
                await tried.wait()

        for device in fleet[1:]:
            device.hold = hold
        upload = fleet[0].upload

        async def sends(payload: bytes) -> None:
            await upload(payload)
            assert fleet[0].answer[0] == status
            tried.set()

        monkeypatch.setattr(fleet[0], "upload", sends)
        monkeypatch.setattr(Database, "write", losing)
        monkeypatch.setattr(Database, "read", absent)
        monkeypatch.setattr(Adder, "_commit", first)
        assert finished(await run(fleet)) == 4
        assert (await current_sum(server))[:6].tolist() == [1, 1, 1, 1, 0, 0]


async def test_what_others_commit_meanwhile_costs_an_adder_no_second_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica is first three times in a row, with the headers of the other devices."""
    async with served(tmp_path, spec()) as server:
        first, *others = devices(server, 4)
        headers: list[tuple[bytes, bytes]] = []
        waiting, tried = asyncio.Event(), asyncio.Event()
        before, commit, sums_made, seen = [], Cohort._commit, [], []
        sum_with = Adder._sum_with

        def replica_of(cohort: Cohort, replay: Replay) -> Cohort:
            async def nothing(*_: object) -> None: ...

            return Cohort(
                server.service.core, cohort.task, cohort.id, replay, cohort.sessions,
                nothing, nothing, lambda *_: None,
            )  # fmt: skip

        async def overtaken(self: Cohort, stepped: Any) -> None:
            adds = any(isinstance(event, VectorAdded) for event in stepped.events)
            if adds and headers and self.id in server.service.driver.live:
                identity, header = headers.pop()
                async with self.core.database.read() as connection:
                    events = await cohorts.events_after(connection, self.id, -1)
                elsewhere = replica_of(self, driver._replay(self.task, events))
                index = next(
                    at for at, one in enumerate(self.state.roster) if one.identity_key == identity
                )
                await elsewhere.submit(Received(index, header, self.core.clock()))
                before.append(index)
                await elsewhere.close()
            await commit(self, stepped)

        def counted(self: Adder, group: Any) -> Any:
            sums_made.append(len(group))
            return sum_with(self, group)

        async def hold(name: str) -> None:
            if name == "vector":
                await waiting.wait()

        for device in others:

            async def post(message: bytes, device: Device = device) -> int:
                if device.payload and not tried.is_set():
                    headers.append((device.certificate.identity_key, message))
                    if len(headers) == 3:
                        waiting.set()
                    await tried.wait()
                return await Device.post(device, message)

            monkeypatch.setattr(device, "post", post)
        upload = first.upload

        async def sends(payload: bytes) -> None:
            await upload(payload)
            (live,) = server.service.driver.live.values()
            seen.append((first.answer[0], len(before), sums_made.copy(), live.cohort.failed))
            tried.set()

        first.hold = hold
        monkeypatch.setattr(first, "upload", sends)
        monkeypatch.setattr(Cohort, "_commit", overtaken)
        monkeypatch.setattr(Adder, "_sum_with", counted)
        assert finished(await run([first, *others])) == 4
        assert seen == [(200, 3, [1], False)]
        assert (await current_sum(server))[:6].tolist() == [1, 1, 1, 1, 0, 0]


async def test_a_generation_counts_only_with_its_own_devices_and_bytes(tmp_path: Path) -> None:
    async with served(tmp_path, spec()) as server:
        fleet = devices(server, 4)
        seen, looked = [], asyncio.Event()

        async def look(name: str) -> None:
            if name != "unmask" or looked.is_set():
                return
            looked.set()
            core = server.service.core
            (cohort,) = server.service.driver.live
            async with core.database.read() as connection:
                (partial,) = await sums.partials(connection, cohort)
                everybody = {device.certificate.identity_key for device in fleet}
                other = Partial(partial.shard, partial.generation, bytes(32))
                seen.append(await sums.counts(connection, cohort, other, everybody))
                seen.append(await sums.counts(connection, cohort, partial, {bytes(32)}))

        for device in fleet:
            device.hold = look
        assert finished(await run(fleet)) == 4
    assert seen == [False, False]


def hide(file: Path) -> None:
    file.rename(file.with_name("hidden"))


def change(file: Path) -> None:
    lanes = np.frombuffer(file.read_bytes(), "<u4").copy()
    lanes[6] += 77  # no check coordinate
    file.with_name("hidden").write_bytes(file.read_bytes())
    file.write_bytes(lanes.tobytes())


@pytest.mark.parametrize(("spoil", "reason"), [(hide, "blob-missing"), (change, "blob-damaged")])
@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_sum_waits_for_its_file_and_not_for_ever(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    reason: str,
    comes_back: bool,
) -> None:
    monkeypatch.setattr(driver, "_STORE_AGAIN_S", 0.01)
    if not comes_back:
        monkeypatch.setattr(driver, "_MISSING_MAX_S", 0.0)
    async with served(tmp_path, spec()) as server:
        spoilt: list[Path] = []

        async def hold(name: str) -> None:
            if name == "unmask" and not spoilt:
                spoilt.extend(f for f in (tmp_path / "blobs" / "partial").rglob("*") if f.is_file())
                for file in spoilt:
                    spoil(file)

        running = asyncio.create_task(run(devices(server, 4, hold=hold)))
        if comes_back:
            lives = server.service.driver.live
            await server.until(lambda _: any(live._missing_since_s for live in lives.values()))
            for file in spoilt:
                file.with_name("hidden").replace(file)
        outcomes = await running
        (release,) = (await server.view())["releases"]
        if comes_back:
            assert (finished(outcomes), release["outcome"]) == (4, "released")
            assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]
        else:
            assert (release["outcome"], release["reason"]) == ("charged", reason)
            assert (release["fault"], release["struck"]) == ("service", 0)


@pytest.mark.parametrize("dies", [False, True])
async def test_a_refused_sum_is_not_the_devices_fault_after_a_failure_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    """The process that ends the cohort is another than the one whose work had failed, whose
    database was away then, and which may have died before its next commit."""
    tries, note = [], cohorts.work_failed

    async def refused(*_: object) -> None:
        raise RemoteProtocolError("check-coordinates", "The check coordinates are wrong.")

    async def away_once(connection: Connection, cohort: str) -> None:
        tries.append(cohort)
        if len(tries) == 1:
            raise OSError("the database restarts")
        await note(connection, cohort)

    monkeypatch.setattr(driver, "unmasked_sum", refused)
    monkeypatch.setattr(cohorts, "work_failed", away_once)
    async with served(tmp_path, spec()) as server:
        done = []

        async def hold(name: str) -> None:
            if name in ("vector", "unmask") and name not in done:
                done.append(name)
                if name == "vector":
                    (live,) = server.service.driver.live.values()
                    live.cohort.work_failed()
                    await asyncio.sleep(0)
                    await live.cohort._telling
                    if dies:
                        live.cohort._unnoted = False
                    else:
                        (tmp_path / "blobs" / live.cohort._failure).unlink()
                else:
                    await server.restart()

        await run(devices(server, 4, hold=hold))
        (release,) = (await server.view())["releases"]
        assert (release["reason"], release["fault"]) == ("check-coordinates", "unknown")
        assert release["struck"] == 0
        uploads = tmp_path / "blobs" / "uploads"
        await server.until(lambda _: not any(uploads.rglob("failed")))


@pytest.mark.parametrize(
    "error",
    [OSError(5, "Input/output error"), DatabaseAway("db", OSError("gone"))],
    ids=["disk", "database"],
)
async def test_a_sum_waits_for_a_disk_or_database_that_fails_and_its_log_tells_it_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """The database tells by itself that it is away."""
    monkeypatch.setattr(driver, "_STORE_AGAIN_S", 0.01)
    unmasked_sum, tries = driver.unmasked_sum, 0

    async def failing(*given: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 5:
            raise error
        return await unmasked_sum(*given)

    monkeypatch.setattr(driver, "unmasked_sum", failing)
    async with served(tmp_path, spec()) as server:
        logs.configure()
        assert finished(await run(devices(server, 4))) == 4
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]
    told = lines(capsys)
    assert len(of("opening-waits", told)) == (1 if isinstance(error, OSError) else 0)
    assert not of("opening-failed", told)


async def test_a_file_that_was_missing_before_another_failure_is_waited_for_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "_STORE_AGAIN_S", 0.01)
    monkeypatch.setattr(driver, "_MISSING_MAX_S", 10.0)
    unmasked_sum = driver.unmasked_sum
    errors: list[Exception] = [
        BlobMissing("partial"), OSError(5, "Input/output error"), BlobMissing("partial")
    ]  # fmt: skip

    async def failing(*given: Any) -> Any:
        if not errors:
            return await unmasked_sum(*given)
        server.ahead_s += 6.0
        raise errors.pop(0)

    monkeypatch.setattr(driver, "unmasked_sum", failing)
    async with served(tmp_path, spec()) as server:
        assert finished(await run(devices(server, 4))) == 4
        assert (await current_sum(server))[:5].tolist() == [1, 1, 1, 1, 0]


async def test_a_program_s_own_error_ends_a_cohort_and_is_the_service_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the operating system has a number."""

    async def broken(*_: object) -> None:
        raise OSError("cannot parse")

    monkeypatch.setattr(driver, "unmasked_sum", broken)
    async with served(tmp_path, spec()) as server:
        await run(devices(server, 4))
        (release,) = (await server.view())["releases"]
        assert (release["reason"], release["fault"]) == ("release-failed", "service")


async def test_no_list_of_a_charge_is_written_while_others_wait_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp.ledger.records.INLINE_MAX", 2)
    async with served(tmp_path, spec()) as server:
        put, held = BlobStore.put_digest, []

        def noting(blobs: BlobStore, folder: str, data: bytes) -> bytes:
            if folder == CONTRIBUTORS:
                held.append(server.service.core.database._writer.locked())
            return put(blobs, folder, data)

        monkeypatch.setattr(BlobStore, "put_digest", noting)
        assert finished(await run(devices(server, 4))) == 4
        assert held == [False]
        fleet = devices(server, 4)
        for device in fleet:
            device.stop_before = "vector"
        await run(fleet)
        server.ahead_s = 100.0
        await server.until(lambda view: len(view["releases"]) == 2)
        assert held == [False, False]
        assert len(list((tmp_path / "blobs" / CONTRIBUTORS).iterdir())) == 2


async def test_an_end_wakes_its_task_whatever_fails_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise OSError("the ledger's files cannot be written")

    async def hangs(_: object) -> None:
        await asyncio.Event().wait()

    woken, wake, forgotten = [], driver.Driver.wake_task, []
    forget = mail.forget_bulk

    async def told(self: driver.Driver, task: str) -> None:
        if asyncio.current_task().get_name().startswith("end-"):  # type: ignore[union-attr]
            woken.append(task)
        await wake(self, task)

    async def forgets(connection: Connection, cohort: str) -> None:
        await forget(connection, cohort)
        forgotten.append(cohort)

    monkeypatch.setattr(Ending, "published", fails)
    monkeypatch.setattr(Uploads, "close", hangs)
    monkeypatch.setattr(driver.Driver, "wake_task", told)
    monkeypatch.setattr(mail, "forget_bulk", forgets)
    async with served(tmp_path, spec()) as server:
        assert finished(await run(devices(server, 4))) == 4
        await server.until(lambda _: bool(woken))
        assert len(forgotten) == 1


async def test_a_store_that_hangs_holds_up_no_abort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an abort the store is asked whether a replica noted a failure there."""
    monkeypatch.setattr("aggregator.cohorts.actor._NOTE_S", 0.2)
    gone_on = threading.Event()
    async with served(tmp_path, spec()) as server:
        monkeypatch.setattr(BlobStore, "exists", lambda *_: gone_on.wait(60.0))
        fleet = devices(server, 4)
        for device in fleet:
            device.stop_before = "deals"
        await asyncio.gather(*(device.run() for device in fleet))
        await server.until(lambda view: view["cohort"] is not None)
        server.ahead_s += 86_400.0
        try:
            view = await server.until(lambda view: view["cohort"] is None)
            assert view["aborted"] == 1
        finally:
            gone_on.set()


def test_a_changed_model_or_state_is_refused(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    vector, momentum = np.ones(40, np.float32), {"momentum": np.ones(40)}
    model = models.store(blobs, "task", 1, vector).digest
    state = models.store_optimiser(blobs, "task", 1, momentum)
    assert state is not None
    for name in (f"models/{model.hex()}", f"optimisers/{state.hex()}"):
        data = bytearray(blobs.get(name))
        data[-4] ^= 1
        blobs.put(name, bytes(data))
    for load in (
        lambda: models.load(blobs, model),
        lambda: models.load_optimiser(blobs, state),
        lambda: models.load_state(blobs, model, None),
        lambda: make(blobs, model.hex(), NOTHING),
    ):
        with pytest.raises(BlobDamaged) as damaged:
            load()
        assert (damaged.value.reason, bool(damaged.value.remedy)) == ("blob-damaged", True)
