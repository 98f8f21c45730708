"""The adder of a cohort that others commit to, whose store fails or is slow, or that ends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aggregator.cohorts.actor import CohortOver
from aggregator.cohorts.adding import Adder
from aggregator.cohorts.unmasking import _load
from aggregator.store.blobs import BlobStore, BlobsUnavailable
from aggregator.store.database import Conflict
from aggregator.store.sums import Partial
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.ring import pack, packed_size, payload_length
from tests.kits.tasks import built, statistics
from tests.kits.upload_parts import body, uploads_of

MANIFEST = built(statistics(("x", 40, 100.0)))
BITS, SLICE = MANIFEST.encoding.ring_bits, MANIFEST.encoding.slice_length
VECTOR = memoryview(pack(np.ones(payload_length(40, SLICE), np.uint32), BITS))


class Fake:
    """A cohort of four devices; ``submits``: what each commit raises, the last one for ever."""

    def __init__(self, folder: Path, submits: list[Exception | None]) -> None:
        self.puts: list[str] = []
        self.failures: list[bool] = []
        self.late: set[int] = set()
        self._submits = submits
        blobs = BlobStore(folder)
        self._put, self._delete = blobs.put, blobs.delete
        blobs.put, blobs.delete = self.put, self.delete  # type: ignore[method-assign]
        self.threads: set[str] = set()  # that ask the store
        self._asking = ThreadPoolExecutor(2, "asking")
        pool = ThreadPoolExecutor(2, "computing")
        core: Any = SimpleNamespace(blobs=blobs, pool=pool, clock=lambda: 0.0)
        self.replay = SimpleNamespace(seq=0)
        self.task = SimpleNamespace(manifest=MANIFEST, name="t")
        self.id = "c" * 64
        self.state = SimpleNamespace(phase="masking")
        self.adder = Adder(core, self, self)  # type: ignore[arg-type]
        self.adder._is_durable = self.no  # type: ignore[method-assign]

    def told(self) -> None:
        self.threads.add(threading.current_thread().name.partition("_")[0])

    def put(self, name: str, data: bytes | memoryview) -> None:
        self.told()
        self.puts.append(name)
        self._put(name, data)

    def delete(self, name: str) -> None:
        self.told()
        self._delete(name)

    async def ask(self, work: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._asking, work, *arguments)

    async def submit(self, *_: object, **__: object) -> None:
        error = self._submits.pop(0) if len(self._submits) > 1 else self._submits[0]
        if error is not None:
            raise error

    async def no(self, _: object) -> bool:
        return False

    async def refresh(self) -> None:
        pass

    async def probe(self, event: Any) -> bool:
        return event.index not in self.late

    def work_failed(self) -> None:
        self.failures.append(True)

    def added(self, _: int) -> bool:
        return False

    def ticket(self, _: int) -> None:
        pass

    def packed(self, index: int) -> memoryview:
        self.told()
        return VECTOR if index < 4 else VECTOR[:-1]

    def drop(self, _: int) -> None:
        self.told()


async def test_only_threads_of_the_store_wait_for_it(tmp_path: Path) -> None:
    """Those that compute open the sums of others meanwhile."""
    fake = Fake(tmp_path, [None])
    for index in range(2):
        await asyncio.wait_for(fake.adder.add(index), 10.0)
    with pytest.raises(RemoteProtocolError):
        await asyncio.wait_for(fake.adder.add(4), 10.0)
    assert fake.threads == {"asking"}
    await fake.adder.close()


async def test_only_threads_of_the_store_wait_for_a_sum_that_is_opened(tmp_path: Path) -> None:
    fake = Fake(tmp_path, [None])
    await asyncio.wait_for(fake.adder.add(0), 10.0)
    shard, _, generation = fake.puts[0].rpartition("/")[2].partition("-")
    blobs, get = fake.adder._core.blobs, fake.adder._core.blobs.get
    fake.threads.clear()

    def told(name: str) -> bytes:
        fake.told()
        return get(name)

    blobs.get = told  # type: ignore[method-assign]
    core: Any = SimpleNamespace(blobs=blobs, pool=fake.adder._core.pool, ask_blobs=fake.ask)
    plan: Any = SimpleNamespace(length=payload_length(40, SLICE), ring_bits=BITS)
    total = await _load(core, fake.id, [Partial(shard, int(generation), None)], plan)
    np.testing.assert_array_equal(total, 1)
    assert fake.threads == {"asking"}
    await fake.adder.close()


async def test_a_group_that_shrank_is_never_written_where_the_larger_one_was(
    tmp_path: Path,
) -> None:
    """The write or the commit of the first may yet arrive."""
    fake = Fake(tmp_path, [LocalProtocolError("late", "Late."), None])
    fake.late = {1}
    adding = asyncio.gather(fake.adder.add(0), fake.adder.add(1), return_exceptions=True)
    found = await asyncio.wait_for(adding, 10.0)
    assert [getattr(error, "reason", None) for error in found] == [None, "upload-late"]
    assert len(fake.puts) == len(set(fake.puts)) == 2
    assert fake.failures == []
    await fake.adder.close()


async def test_a_conflict_that_is_nobody_s_commit_ends_after_a_few_tries(tmp_path: Path) -> None:
    fake = Fake(tmp_path, [Conflict("another generation counts")])
    with pytest.raises(Conflict):
        await asyncio.wait_for(fake.adder.add(0), 10.0)
    assert len(fake.puts) == len(set(fake.puts)) > 1
    assert fake.failures
    await fake.adder.close()


async def test_who_adds_to_a_closed_adder_is_told_at_once(tmp_path: Path) -> None:
    fake = Fake(tmp_path, [None])
    await fake.adder.close()
    with pytest.raises(CohortOver):
        await asyncio.wait_for(fake.adder.add(0), 1.0)


async def test_who_is_being_added_as_the_adder_closes_is_told(tmp_path: Path) -> None:
    fake = Fake(tmp_path, [None])
    begun = asyncio.Event()

    async def never(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    fake.submit = never  # type: ignore[method-assign]
    adding = asyncio.create_task(fake.adder.add(0))
    await asyncio.wait_for(begun.wait(), 10.0)
    await fake.adder.close()
    with pytest.raises(CohortOver):
        await asyncio.wait_for(adding, 1.0)


async def test_a_chunk_for_a_cohort_that_ended_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another replica: the state that this one has seen does not say so."""
    uploads, blobs, _ = uploads_of(tmp_path, b"vector")
    await uploads.append(0, 0, body(b"vec"))
    again, _, _ = uploads_of(tmp_path, b"vector")
    look = again._look

    async def over(*arguments: Any) -> None:
        await look(*arguments)
        again._cohort.over = True  # type: ignore[misc]

    monkeypatch.setattr(again, "_look", over)
    with pytest.raises(CohortOver):
        await again.append(0, 3, body(b"tor"))
    assert blobs.sizes(f"uploads/{'c' * 64}/0") == {"0-3": 3}


async def test_who_sent_wrong_bytes_hears_so_though_the_store_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, blobs, failures = uploads_of(tmp_path, os.urandom(packed_size(40, BITS)))
    await uploads.append(0, 0, body(bytes(packed_size(40, BITS))))

    def away(*_: object) -> None:
        raise BlobsUnavailable("delete uploads", "timed out", "Wait.")

    monkeypatch.setattr(blobs, "clear", away)
    with pytest.raises(Exception, match="not those") as refused:
        await asyncio.to_thread(uploads.packed, 0)
    assert refused.value.reason == "vector-digest"  # type: ignore[attr-defined]
    assert failures
