"""Blobs: named bytes that appear whole or not at all, in a folder or an object store.

Models and optimiser states are named by their SHA-256, so that writing one twice is harmless and
a torn file cannot be taken for a whole one. Partial sums are named by cohort, shard and
generation, and are valid only when a row of the database says so. Parts of vectors under way are
named by cohort, device, offset and length; a vector's digest says whether they fit together.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from secagg.errors import ConfigurationError, SecaggError
from secagg.files.folders import remove_files

ARRIVING = re.compile(r"\.arriving-[0-9a-f]{16}")  # what a crash leaves of an Arriving
_INNER = re.compile("[0-9]+")  # folders in a folder of parts


class BlobMissing(SecaggError):
    """A blob that the database names is not in the store."""

    def __init__(self, name: str) -> None:
        super().__init__(
            "blob-missing",
            "A stored file is missing.",
            expected=name,
            remedy="Restore the blob folder or bucket from the backup that belongs to the "
            "database.",
        )


class BlobDamaged(SecaggError):
    """A blob holds other bytes than were written."""

    def __init__(self, name: str, expected: bytes, found: bytes) -> None:
        super().__init__(
            "blob-damaged",
            f"The stored file {name} holds other bytes than were written.",
            expected=expected.hex(),
            found=found.hex(),
            remedy="Restore the blob folder or bucket from the backup that belongs to the "
            "database.",
        )


class BlobsUnavailable(OSError):
    """The store did not do what it was asked, after all tries; it may do so later.

    Like an error of a disk it is not a :class:`SecaggError`: no device and no sum is at fault.
    """

    def __init__(self, what: str, why: str, remedy: str) -> None:
        self.reason = "blobs-unavailable"
        self.what = what
        self.why = why
        self.remedy = remedy
        super().__init__(f"The blob store did not {what}: {why}. {remedy}")


def store_failed(error: BaseException) -> bool:
    """Whether a store failed, or the disk, mount or network below it: it may work again, and no
    device and no sum is at fault.

    What the operating system refuses has its number; an ``OSError`` without one is of a program.
    """
    if isinstance(error, BlobsUnavailable):
        return True
    return isinstance(error, OSError) and error.errno is not None


class Readable(Protocol):
    """A blob that is read in pieces. ``size``: in bytes."""

    size: int

    def seek(self, offset: int, /) -> object: ...

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


class Arriving(ABC):
    """Bytes that come in pieces and get their name at the end. Leaving it discards the rest.

    The store is asked from the first bytes on. Methods block; call them in a thread.
    """

    def __init__(self) -> None:
        self.size = 0  # bytes so far

    @abstractmethod
    def write(self, data: bytes | bytearray) -> None: ...

    @abstractmethod
    def keep(self, name: str) -> None:
        """Give it its name, whole. Not yet durable in a folder: a crash of the machine may tear
        it, a crash of the process does not."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Blobs(ABC):
    """A store. Names have ``/`` between their parts. Methods block; call them in a thread.

    All raise an ``OSError`` where the store fails: its own, or :class:`BlobsUnavailable`.
    """

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write atomically and durably."""

    @abstractmethod
    def get(self, name: str) -> bytes:
        """Raises: BlobMissing."""

    def get_verified(self, name: str, digest: bytes) -> bytes:
        """A blob whose SHA-256 is known.

        Raises:
            BlobMissing:
            BlobDamaged:
        """
        data = self.get(name)
        found = hashlib.sha256(data).digest()
        if found != digest:
            raise BlobDamaged(name, digest, found)
        return data

    @abstractmethod
    def open(self, name: str) -> Readable:
        """Raises: BlobMissing."""

    @abstractmethod
    def exists(self, name: str) -> bool: ...

    @abstractmethod
    def delete(self, name: str) -> None:
        """Nothing happens if it is not there."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Names below a folder, without its own, and bytes; also in folders of it that are
        numbers. What is not whole is not in it."""

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder."""

    @abstractmethod
    def clear(self, folder: str, names: re.Pattern[str]) -> None:
        """Delete what has such names (their last part) in a folder, and in folders of it that are
        numbers. Everything else stays."""

    @abstractmethod
    def arriving(self, folder: str) -> Arriving:
        """A blob of this folder that is about to come. Asks nothing of the store yet."""

    @abstractmethod
    def demand_answer(self) -> None:
        """
        Raises:
            ConfigurationError: ``blobs-unreachable``: the store cannot be used as it is set.
        """

    def path(self, name: str) -> Path | None:
        """The file of a blob; None in a store without files."""
        return None

    def put_digest(self, folder: str, data: bytes) -> bytes:
        """Write under the data's own SHA-256; returns the 32-byte digest."""
        digest = hashlib.sha256(data).digest()
        name = f"{folder}/{digest.hex()}"
        if not self.exists(name):
            self.put(name, data)
        return digest


class BlobStore(Blobs):
    """Blobs as files of one folder, which replicas of one service share."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def demand_answer(self) -> None:
        """
        Raises:
            ConfigurationError: ``blobs-unreachable``.
        """
        if not (self._root.is_dir() and os.access(self._root, os.W_OK | os.X_OK)):
            why = "cannot be written" if self._root.is_dir() else "does not exist"
            raise ConfigurationError(
                "blobs-unreachable",
                f"The folder of blobs {self._root} {why}.",
                remedy="Mount or restore it, or check SECAGG_BLOB_DIR.",
            )

    def path(self, name: str) -> Path:
        return self._root / name

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Temporary file, fsync, rename, fsync of the folder."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def get(self, name: str) -> bytes:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(name) from None

    def open(self, name: str) -> Readable:
        return _File(self.path(name), name)

    def exists(self, name: str) -> bool:
        return self.path(name).is_file()

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for inner in ("", *filter(_INNER.fullmatch, self.folders(folder))):
            with (
                contextlib.suppress(FileNotFoundError),
                os.scandir(self.path(folder) / inner) as it,
            ):
                for entry in it:
                    if not entry.name.startswith(".") and entry.is_file(follow_symlinks=False):
                        name = f"{inner}/{entry.name}" if inner else entry.name
                        with contextlib.suppress(FileNotFoundError):
                            found[name] = entry.stat().st_size
        return found

    def folders(self, folder: str) -> list[str]:
        try:
            with os.scandir(self.path(folder)) as entries:
                return [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []

    def clear(self, folder: str, names: re.Pattern[str]) -> None:
        for inner in filter(_INNER.fullmatch, self.folders(folder)):
            remove_files(self.path(folder) / inner, names)
        remove_files(self.path(folder), names)

    def arriving(self, folder: str) -> Arriving:
        return _ArrivingFile(self._root, folder)


class _File:
    def __init__(self, path: Path, name: str) -> None:
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise BlobMissing(name) from None
        self.size = os.fstat(self._file.fileno()).st_size
        self.seek, self.read, self.close = self._file.seek, self._file.read, self._file.close


class _ArrivingFile(Arriving):
    """A hidden file beside its place, so that its name is one rename away. The first bytes make
    it."""

    def __init__(self, root: Path, folder: str) -> None:
        super().__init__()
        self._root = root
        self._path = root / folder / f".arriving-{secrets.token_hex(8)}"
        self._file: FileIO | None = None

    def write(self, data: bytes | bytearray) -> None:
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb", buffering=0)
        left = memoryview(data)
        while left:
            written = self._file.write(left)
            self.size += written  # also where the disk is full in the middle of it
            left = left[written:]

    def keep(self, name: str) -> None:
        self._path.replace(self._root / name)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._path.unlink(missing_ok=True)


def folders_of(blobs: Blobs, folder: str, names: re.Pattern[str]) -> Iterable[str]:
    """Names, from the root on, of the folders in a folder that are named so."""
    return [f"{folder}/{name}" for name in blobs.folders(folder) if names.fullmatch(name)]


def _sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
