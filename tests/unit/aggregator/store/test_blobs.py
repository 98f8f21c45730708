"""One behaviour of two stores of blobs: a folder, and objects of a real S3 server."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.settings.options import Settings
from aggregator.store import objects
from aggregator.store.blobs import BlobMissing, Blobs, BlobStore, BlobsUnavailable
from aggregator.store.objects import ObjectStore
from secagg.errors import ConfigurationError
from tests.kits.objects import SECRET, Door, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[Door]:
    with s3_server() as door:
        yield door


@pytest.fixture(params=["folder", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return BlobStore(tmp_path / "blobs")
    return ObjectStore(request.getfixturevalue("s3").bucket())


def test_a_blob_is_what_was_put_last(blobs: Blobs) -> None:
    assert not blobs.exists("models/a")
    for data in (b"one", b"", memoryview(b"two" * 1_000)):
        blobs.put("models/a", data)
        assert blobs.get("models/a") == bytes(data)
    assert blobs.exists("models/a")
    assert not blobs.exists("models")


def test_a_blob_that_is_not_there_is_named(blobs: Blobs) -> None:
    for ask in (blobs.get, blobs.open):
        with pytest.raises(BlobMissing, match="models/gone") as caught:
            ask("models/gone")
        assert caught.value.reason == "blob-missing"
    blobs.delete("models/gone")
    blobs.clear("nothing", re.compile(".*"))
    assert (blobs.sizes("nothing"), blobs.folders("nothing")) == ({}, [])


def test_a_deleted_blob_is_gone(blobs: Blobs) -> None:
    blobs.put("models/a", b"x")
    blobs.delete("models/a")
    assert not blobs.exists("models/a")


def test_a_blob_under_its_digest_is_written_once(blobs: Blobs) -> None:
    digest = blobs.put_digest("models", b"numbers")
    assert digest == hashlib.sha256(b"numbers").digest()
    blobs.put(f"models/{digest.hex()}", b"another")
    assert blobs.put_digest("models", b"numbers") == digest
    assert blobs.get(f"models/{digest.hex()}") == b"another"


def test_a_blob_is_read_in_pieces_from_anywhere(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_PIECE_BYTES", 7)
    data = bytes(range(100))
    blobs.put("models/a", data)
    assert blobs.get("models/a") == data
    file = blobs.open("models/a")
    assert (file.size, file.read(10)) == (100, data[:10])
    file.seek(90)
    assert (file.read(100), file.read(100)) == (data[90:], b"")
    file.close()


def test_a_listing_has_what_lies_in_a_folder_and_in_its_numbers(blobs: Blobs) -> None:
    for name in ("up/c/0/0-5", "up/c/0/5-7", "up/c/12/0-5", "up/c/x/0-5", "up/c/sum", "up/cc/1"):
        blobs.put(name, b"12345")
    assert blobs.sizes("up/c") == dict.fromkeys(("0/0-5", "0/5-7", "12/0-5", "sum"), 5)
    assert sorted(blobs.folders("up")) == ["c", "cc"]
    blobs.clear("up/c", re.compile("0-5"))
    assert blobs.sizes("up/c") == {"0/5-7": 5, "sum": 5}
    assert blobs.exists("up/c/x/0-5")
    assert blobs.exists("up/cc/1")


def test_what_arrives_appears_whole_under_its_last_name_or_not_at_all(blobs: Blobs) -> None:
    with blobs.arriving("up/c/0") as arriving:
        arriving.write(b"ab")
        arriving.write(b"c" * 3_000_000)
        assert blobs.sizes("up/c") == {}
        assert arriving.size == 3_000_002
        arriving.keep("up/c/0/0-3000002")
    with blobs.arriving("up/c/1") as arriving:
        arriving.write(b"lost")
    assert blobs.sizes("up/c") == {"0/0-3000002": 3_000_002}
    assert blobs.get("up/c/0/0-3000002").startswith(b"abccc")
    blobs.clear("up/c", re.compile("[0-9]+-[0-9]+"))
    assert blobs.sizes("up/c") == {}


# -- faults of an object store --------------------------------------------------------------------


def test_a_store_that_is_busy_for_a_moment_is_asked_again(s3: Door) -> None:
    blobs = ObjectStore(s3.bucket())
    s3.refusals = 2
    blobs.put("models/a", b"x")
    s3.refusals = 1
    with blobs.arriving("up/c/0") as arriving:
        arriving.write(b"ab")
        arriving.keep("up/c/0/0-2")
    s3.refusals = 1
    assert blobs.get("up/c/0/0-2") == b"ab"


def test_what_waits_for_the_store_lies_on_the_disk_of_the_data(s3: Door, tmp_path: Path) -> None:
    """The system's folder for such files is memory on many machines."""
    with ObjectStore(s3.bucket(), tmp_path).arriving("up/c/0") as arriving:
        arriving.write(bytes(2 << 20))
        file = arriving._file.fileno()  # type: ignore[attr-defined]
        assert os.readlink(f"/proc/self/fd/{file}").startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_stays_busy_is_told_in_words_without_its_own(s3: Door) -> None:
    blobs = ObjectStore(s3.bucket(), patience_s=0.2)
    s3.refusals, before = 1_000, s3.asked
    try:
        with pytest.raises(BlobsUnavailable) as caught:
            blobs.put("models/a", b"x")
    finally:
        s3.refusals = 0
    assert 1 <= s3.asked - before <= 20  # waits are drawn, and a busy machine is slow
    text = str(caught.value)
    assert "write models" in text
    assert "status 503" in text
    assert "planted" not in text
    assert caught.value.__suppress_context__  # nor in a traceback


def test_a_slow_store_has_a_deadline(s3: Door) -> None:
    blobs = ObjectStore(s3.bucket(), patience_s=0.1, timeout_s=0.2)
    s3.delay_s, started = 0.6, time.monotonic()
    try:
        with pytest.raises(BlobsUnavailable, match="read models"):
            blobs.exists("models/a")
    finally:
        s3.delay_s = 0.0
    assert time.monotonic() - started < 2.0


def test_a_bucket_that_is_not_there_is_refused_at_the_start(s3: Door) -> None:
    with pytest.raises(ConfigurationError, match="blob_url") as caught:
        ObjectStore("s3://no-such-bucket/x", patience_s=0.1).demand_answer()
    assert caught.value.reason == "blobs-unreachable"
    ObjectStore(s3.bucket()).demand_answer()


@pytest.mark.parametrize(
    "url",
    [
        "https://store/bucket",
        "s3://",
        f"s3://key:{SECRET}@bucket/x",
        f"s3://bucket/x?secret={SECRET}",
        "bucket",
    ],
)
def test_a_url_is_a_bucket_and_has_no_credentials(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError, match="blob_url") as caught:
        Settings.load(data_dir=tmp_path, blob_url=url)
    assert caught.value.reason == "settings-invalid"
    assert SECRET not in str(caught.value)


def test_one_service_has_one_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="two stores"):
        Settings.load(data_dir=tmp_path, blob_dir=tmp_path / "b", blob_url="s3://bucket")


def test_what_arrived_before_a_disk_was_full_is_named_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self._file = file
            self.close = file.close
            self._writes = 0

        def write(self, data: bytes) -> int:
            self._writes += 1
            if self._writes == 2:
                raise OSError(28, "No space left on device")
            return int(self._file.write(data[:30]))

    with BlobStore(tmp_path).arriving("uploads/c/0") as arriving:
        arriving.write(b"")
        monkeypatch.setattr(arriving, "_file", Full(arriving._file))  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="No space"):
            arriving.write(bytes(100))
        arriving.keep(f"uploads/c/0/0-{arriving.size}")
    assert BlobStore(tmp_path).sizes("uploads/c/0") == {"0-30": 30}
