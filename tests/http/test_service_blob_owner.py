"""Whose blob store it is, and an answer that breaks off while it is read from the store."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from aggregator import disk, logs
from aggregator.http import responses
from aggregator.maintenance import Maintenance
from aggregator.settings.options import Settings
from aggregator.store.blobs import BlobStore, BlobsUnavailable
from secagg.errors import ConfigurationError
from tests.kits.log_lines import lines, of
from tests.kits.service import TASK, TOKEN, Served, devices, finished, run, served, spec


async def _refused(folder: Path, **settings: Any) -> ConfigurationError:
    server = Served(folder, **settings)
    try:
        with pytest.raises(ConfigurationError) as caught:
            await server.start()
    finally:
        server.release_port()
    return caught.value


async def test_a_folder_of_blobs_has_one_service_and_a_service_one_folder(tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "database_url": f"sqlite:///{tmp_path}/db",
        "keys_dir": tmp_path / "keys",
    }
    async with served(tmp_path / "one", blob_dir=tmp_path / "blobs", **shared) as one:
        mark = (tmp_path / "blobs" / "service").read_text()
        other = await _refused(tmp_path / "other", blob_dir=tmp_path / "blobs")
        assert (other.reason, other.found) == ("blobs-of-another-service", mark)
        forgot = await _refused(tmp_path / "two", **shared)
        assert (forgot.reason, forgot.expected) == ("blobs-not-marked", mark)
        for blobs, reason in ((None, "blobs-not-marked"), (tmp_path / "blobs", None)):
            named = {"data_dir": tmp_path / "two", "blob_dir": blobs, **shared}
            async with Maintenance(Settings.load(**named)) as database:
                with (
                    nullcontext()
                    if reason is None
                    else pytest.raises(ConfigurationError, match=reason)
                ):
                    await database.check()
                with pytest.raises(ConfigurationError, match="replicas-running"):
                    await database.upgrade(None)
        async with served(tmp_path / "three", blob_dir=tmp_path / "blobs", **shared) as three:
            assert await three.service.not_ready() is None

        (tmp_path / "blobs" / "service").write_text("f" * 32 + "-another")
        stale = tmp_path / "blobs" / "partial" / ("ab" * 32) / "s-1"
        stale.parent.mkdir(parents=True)
        stale.write_bytes(b"of the other service")
        with pytest.raises(ConfigurationError, match="blobs-of-another-service"):
            await one.service.janitor.sweep()
        assert stale.exists()
        assert (await one.service.not_ready()).reason == "blobs-of-another-service"
        shutil.rmtree(tmp_path / "blobs")
        assert (await one.service.not_ready()).reason == "blobs-away"


async def test_a_first_start_that_was_killed_between_folder_and_database(tmp_path: Path) -> None:
    async with served(tmp_path) as first:
        mark = (tmp_path / "blobs" / "service").read_text()
        await first.stop()
        async with served(tmp_path, database_url=f"sqlite:///{tmp_path}/new.db"):
            assert (tmp_path / "blobs" / "service").read_text() == mark
        await first.start()


@pytest.mark.parametrize("error", [BlobsUnavailable("read models", "503", ""), OSError(5, "I/O")])
async def test_an_answer_that_breaks_off_is_not_followed_by_another(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
) -> None:
    async with served(tmp_path, spec()) as server:
        logs.configure()
        monkeypatch.setattr(BlobStore, "path", lambda self, name: None)  # as an object store
        monkeypatch.setattr(BlobStore, "open", lambda self, name: _Breaking(error))
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        ask = f"GET /v1/operator/tasks/{TASK}/model HTTP/1.1\r\nHost: x\r\n"
        writer.write(f"{ask}Authorization: Bearer {TOKEN}\r\n\r\n".encode())
        came = b""
        async with asyncio.timeout(5):
            try:
                while piece := await reader.read(1 << 16):
                    came += piece
            except ConnectionResetError:
                pass
        assert came.count(b"HTTP/1.1") <= 1
        assert b"problem" not in came
        writer.close()
        (line,) = of("answer-broken-off", lines(capsys))
        assert type(error).__name__ in str(line["exception"])


class _Breaking:
    """A blob whose second piece cannot be read."""

    size = 1 << 20

    def __init__(self, error: OSError) -> None:
        self._error = error
        self._read = 0

    def seek(self, offset: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def read(self, size: int) -> bytes:
        self._read += 1
        if self._read > 1:
            raise self._error
        return b"x" * min(size, responses._PIECE_BYTES)


async def test_a_hung_store_takes_one_thread_of_its_own_however_many_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as server:
        service = server.service
        hangs, looks = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def hung() -> None:
            looks.append(1)
            asyncio.run_coroutine_threadsafe(hangs.wait(), loop).result()

        monkeypatch.setattr("aggregator.readiness._BLOBS_S", 0.05)
        monkeypatch.setattr(service.core.blobs, "demand_answer", hung)
        for _ in range(3):
            found = await asyncio.gather(*(service.not_ready() for _ in range(40)))
            assert {each.reason for each in found} == {"blobs-away"}
        assert looks == [1]
        hangs.set()
        await service.readiness._blobs_asked
        monkeypatch.setattr("aggregator.readiness._BLOBS_S", 20.0)
        assert await service.not_ready() is None


async def test_the_disk_is_looked_at_outside_of_the_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, spec()) as server:
        real, database = disk.full, server.service.core.database
        loop, wrote = asyncio.get_running_loop(), []

        async def write() -> None:
            async with asyncio.timeout(5), database.write():
                wrote.append(1)

        def full(settings: Any) -> Any:
            asyncio.run_coroutine_threadsafe(write(), loop).result()
            return real(settings)

        monkeypatch.setattr("aggregator.cohorts.driver.full", full)
        assert finished(await run(devices(server, 4))) == 4
        assert wrote


async def test_a_model_is_read_from_an_object_store_in_large_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Large(_Breaking):
        def read(self, size: int) -> bytes:
            asked.append(size)
            return b"x" * self.size if len(asked) == 1 else b""

    async with served(tmp_path, spec()) as server:
        monkeypatch.setattr(BlobStore, "path", lambda self, name: None)
        monkeypatch.setattr(BlobStore, "open", lambda self, name: Large(OSError()))
        monkeypatch.setattr(server.settings, "blob_url", "s3://bucket")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{server.url}/v1/operator/tasks/{TASK}/model"
        async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as answer:
            assert len(await answer.read()) == Large.size
    assert asked[0] >= 4 << 20
