"""A vector that comes in many small parts, and one whose parts are read from a slow store."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aggregator.cohorts import uploads as uploads_module
from aggregator.cohorts.uploads import Part, Uploads, chain, crowd, reach
from aggregator.store.blobs import BlobStore
from tests.kits.upload_parts import body, uploads_of


async def send(uploads: Uploads, payload: bytes, size: int, until: int) -> None:
    for offset in range(0, until, size):
        await uploads.append(0, offset, body(payload[offset : offset + size]))


async def test_a_vector_in_single_bytes_is_a_few_parts_and_whole(tmp_path: Path) -> None:
    payload = os.urandom(200)
    uploads, blobs, failures = uploads_of(tmp_path, payload)
    await send(uploads, payload, 1, len(payload))
    assert len(blobs.sizes(f"uploads/{'c' * 64}/0")) <= 32
    assert await uploads.received(0) == len(payload)
    assert bytes(uploads.packed(0)) == payload
    assert failures == []


async def test_parts_of_a_vector_are_read_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = os.urandom(10)
    uploads, blobs, _ = uploads_of(tmp_path, payload)
    await send(uploads, payload, 1, len(payload))
    get, met = blobs.get, threading.Barrier(10)

    def together(name: str) -> bytes:
        met.wait(10.0)
        return get(name)

    monkeypatch.setattr(blobs, "get", together)
    assert bytes(uploads.packed(0)) == payload


@pytest.mark.parametrize("sizes", [(1,), (4_096,), (1, 1, 1, 17), (1, 300, 1, 1, 5_000)])
def test_small_parts_become_large_ones_and_are_rarely_written_again(sizes: tuple[int, ...]) -> None:
    parts: set[Part] = set()
    end = written = most = 0
    for number in range(5_000):
        if run := crowd(chain(parts)):
            whole = Part(run[0].offset, run[-1].end)
            parts = parts - set(run) | {whole}
            written += whole.length
        parts.add(Part(end, end + sizes[number % len(sizes)]))
        end += sizes[number % len(sizes)]
        most = max(most, len(parts))
    assert reach(parts) == end
    assert most <= 16 * 7 + 1  # the largest is shorter than 16**7
    assert written < 20 * end


def test_a_part_within_another_covers_nothing() -> None:
    parts = {Part(0, 10), Part(0, 20), Part(5, 15), Part(20, 25), Part(30, 40)}
    assert chain(parts) == [Part(0, 20), Part(20, 25)]
    assert reach(parts) == 25


@pytest.mark.parametrize("what", ["write", "keep", "sizes"])
async def test_a_store_that_fails_is_a_failure_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    uploads, blobs, failures = uploads_of(tmp_path, b"vector")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if what in ("write", "keep"):
        arriving = blobs.arriving

        def failing(folder: str) -> Any:
            found = arriving(folder)
            monkeypatch.setattr(found, what, full)
            return found

        monkeypatch.setattr(blobs, "arriving", failing)
    else:
        monkeypatch.setattr(blobs, what, full)
    with pytest.raises(OSError, match="No space"):
        await (uploads.received(0) if what == "sizes" else uploads.append(0, 0, body(b"vec")))
    assert failures


class Held:
    """The arriving of a store; ``keep`` waits for ``go``. ``threads``: those that asked it."""

    def __init__(self, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.keeping = threading.Event(), threading.Event()
        self.threads: set[int] = set()
        arriving = blobs.arriving

        def held(folder: str) -> Any:
            found = arriving(folder)
            for name in ("write", "keep", "close"):
                monkeypatch.setattr(found, name, self._told(name, getattr(found, name)))
            return found

        monkeypatch.setattr(blobs, "arriving", held)

    def _told(self, name: str, work: Callable[..., None]) -> Callable[..., None]:
        def told(*arguments: object) -> None:
            self.threads.add(threading.get_ident())
            if name == "keep":
                self.keeping.set()
                assert self.go.wait(10.0)
            work(*arguments)

        return told


async def test_what_is_being_kept_as_its_sender_asks_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, blobs, _ = uploads_of(tmp_path, b"vector")
    held = Held(blobs, monkeypatch)
    sending = asyncio.create_task(uploads.append(0, 0, body(b"vector")))
    await asyncio.to_thread(held.keeping.wait, 10.0)
    asking = asyncio.create_task(uploads.received(0))
    for _ in range(5):
        await asyncio.sleep(0)
    held.go.set()
    assert await asyncio.wait_for(asking, 10.0) == 6
    assert await sending == 6  # and goes on to add it: who asks is not told to


async def test_the_event_loop_asks_nothing_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that machines share may hang as an object store does."""
    payload = os.urandom(3 * uploads_module._WRITTEN_AT_ONCE // 2)
    uploads, blobs, _ = uploads_of(tmp_path, payload)
    held = Held(blobs, monkeypatch)
    held.go.set()

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(payload), 50_000):
            yield payload[at : at + 50_000]

    assert await uploads.append(0, 0, pieces()) == len(payload)
    assert held.threads
    assert threading.get_ident() not in held.threads
    assert bytes(await asyncio.to_thread(uploads.packed, 0)) == payload


async def test_waiting_for_a_thread_is_not_a_failure_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, blobs, _ = uploads_of(tmp_path, b"vector")
    free, failed, sizes = asyncio.Event(), threading.Event(), blobs.sizes

    async def later(work: Callable[..., Any], *arguments: object) -> Any:
        await free.wait()
        return await asyncio.to_thread(work, *arguments)

    def slow(folder: str) -> dict[str, int]:
        assert failed.wait(10.0)
        return sizes(folder)

    monkeypatch.setattr(uploads_module, "_SLOW_S", 0.0)
    monkeypatch.setattr(uploads._core, "ask_blobs", later)
    monkeypatch.setattr(uploads._cohort, "work_failed", failed.set)
    monkeypatch.setattr(blobs, "sizes", slow)
    asking = asyncio.create_task(uploads._look(0, uploads._slot(0)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not failed.is_set()
    free.set()
    await asyncio.wait_for(asking, 10.0)
    assert failed.is_set()


async def test_the_end_ends_all_requests_at_once_while_others_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, blobs, _ = uploads_of(tmp_path, b"vector")
    held = Held(blobs, monkeypatch)
    uploads._cohort.replay.uploads[1] = uploads._cohort.replay.uploads[0]
    coming = [asyncio.Event(), asyncio.Event()]

    async def stalls(number: int) -> AsyncIterator[bytes]:
        yield b"vec"
        coming[number].set()
        await asyncio.Event().wait()

    sending = [asyncio.create_task(uploads.append(n, 0, stalls(n))) for n in range(2)]
    for event in coming:
        await asyncio.wait_for(event.wait(), 10.0)
    closing = asyncio.create_task(uploads.close())
    await asyncio.to_thread(held.keeping.wait, 10.0)
    assert uploads._slot(2).writer is None  # as of a request that comes now
    assert all(slot.writer.cancelling() for slot in (uploads._slots[0], uploads._slots[1]))  # type: ignore[union-attr]
    held.go.set()
    await asyncio.wait_for(closing, 10.0)
    await asyncio.gather(*sending, return_exceptions=True)
    assert blobs.sizes(f"uploads/{'c' * 64}") == {}
