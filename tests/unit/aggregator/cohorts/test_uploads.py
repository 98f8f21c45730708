"""A vector that comes in many small parts, and one whose parts are read from a slow store."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from aggregator.cohorts.uploads import Part, Uploads, chain, crowd, reach
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


@pytest.mark.parametrize("what", ["arriving", "write", "keep", "sizes"])
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
