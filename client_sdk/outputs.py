"""Files and folders that a user names for results.

Nothing that stands at such a place is removed, and nothing is replaced but what an earlier call
wrote there itself, which each caller recognises by content. A file appears whole or not at all: it
is written beside its place, synced, and renamed; so is a new folder. Where a call fails, folders
that it made are gone again.

``~`` is the home folder, also where no shell has said so (``--out=~/x``). Links are followed: a
link stays, and what it points at counts. A device or pipe, such as ``/dev/stdout``, is written to.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from client_sdk.errors import OutputError
from client_sdk.state.durable_files import sync_folder

Ours = Callable[[Path], bool]
"""Whether an earlier call wrote the file, or the folder, at this path."""

_STAGED = ".secagg-"  # begins the name of what is being written; left behind by a kill alone


def place_of(path: str | os.PathLike[str]) -> Path:
    """Where a result goes, absolute: ``~`` and links followed.

    Raises:
        OutputError: ``out-unwritable``, also of an empty path and of a link that leads nowhere.
    """
    with _typed(path):
        if not os.fspath(path):
            raise ValueError("the path is empty")
        try:
            place = Path(path).expanduser()
        except RuntimeError as error:  # no home folder
            raise ValueError(error) from error
        for at in (place, *place.parents):
            if at.is_symlink() and not at.exists():
                raise OutputError(
                    "out-unwritable",
                    f"{at} is a link to {os.readlink(at)}, which is not there.",
                    remedy="Make what it points at, or name another place. Nothing was changed.",
                )
        return Path(os.path.realpath(place))


def check_file(path: str | os.PathLike[str], ours: Ours | None = None) -> Path:
    """See, before any work, that a result may be written at ``path``; returns where that is.

    Args:
        ours: recognises an earlier result, which may be replaced; None: nothing may be.

    Raises:
        OutputError: ``out-is-folder``; ``out-taken`` by a file that is not ours;
            ``out-unwritable``.
    """
    place = place_of(path)
    with _typed(path):
        kind = _kind(place)
        if kind is None:
            _demand_writable(place.parent)
        elif stat.S_ISDIR(kind):
            raise OutputError(
                "out-is-folder", f"{path} is a folder.", remedy="Name a file, such as one in it."
            )
        elif stat.S_ISREG(kind):
            if not _is_ours(place, ours):
                raise _taken(path, f"{path} exists, and was not written by this command.")
            _demand_writable(place.parent)
    return place


def write_file(
    path: str | os.PathLike[str], data: bytes, ours: Ours | None = None, *, private: bool = False
) -> None:
    """Write a result, whole or not at all.

    Args:
        ours: as in :func:`check_file`.
        private: the file is for its owner alone (0600).

    Raises:
        OutputError: as :func:`check_file`.
    """
    place = check_file(path, ours)
    with _typed(path):
        kind = _kind(place)
        if kind is not None and not stat.S_ISREG(kind):
            with place.open("wb") as stream:
                stream.write(data)
            return
        with _folders(place.parent), _staged(place.parent) as staged:
            _write(staged, data, 0o600 if private else 0o666)
            if kind is not None and not private:
                staged.chmod(stat.S_IMODE(kind))
            _put(staged, place, kind is not None, path)
            sync_folder(place.parent)


def check_folder(
    path: str | os.PathLike[str], names: frozenset[str] = frozenset(), ours: Ours | None = None
) -> Path:
    """See, before any work, that a result's folder may be written at ``path``.

    It may be new, empty, or hold nothing but files called ``names`` that an earlier call wrote.

    Raises:
        OutputError: ``out-not-empty``; ``out-not-empty``; ``out-unwritable``.
    """
    place = place_of(path)
    with _typed(path):
        kind = _kind(place)
        if kind is None:
            _demand_writable(place.parent)
            return place
        if not stat.S_ISDIR(kind):
            raise OutputError(
                "out-not-empty", f"{path} is a file.", remedy="Name a new or an empty folder."
            )
        held = sorted(entry for entry in os.listdir(place) if not entry.startswith(_STAGED))
        others = [entry for entry in held if entry not in names]
        if others or (held and not _is_ours(place, ours)):
            shown = ", ".join((others or held)[:3]) + (", ..." if len(others or held) > 3 else "")
            raise OutputError(
                "out-not-empty",
                f"{path} holds what this command did not write: {shown}.",
                remedy="Name a new or an empty folder. Nothing was changed.",
            )
        _demand_writable(place)
    return place


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A new or empty folder for results.

    Raises:
        OutputError: as :func:`check_folder`.
    """
    place = check_folder(path)
    with _typed(path):
        place.mkdir(parents=True, exist_ok=True)
    return place


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes], ours: Ours) -> Path:
    """Write a folder of results (name -> content). A new one appears whole or not at all.

    In a folder that is there, each file appears whole, in the order of ``files``.

    Raises:
        OutputError: as :func:`check_folder`.
    """
    place = check_folder(path, frozenset(files), ours)
    with _typed(path):
        there = place.is_dir()
        home = place if there else place.parent
        with _folders(home), _staged(home) as staged:
            staged.mkdir(0o777)
            for name, data in files.items():
                _write(staged / name, data, 0o666)
            if there:
                for name in files:
                    _put(staged / name, place / name, os.path.lexists(place / name), path)
            else:
                staged.rename(place)
            sync_folder(home)
    return place


def _kind(place: Path) -> int | None:
    """The mode of what stands there; None if nothing does."""
    try:
        return place.stat().st_mode
    except FileNotFoundError:
        return None


def _is_ours(place: Path, ours: Ours | None) -> bool:
    try:
        return ours is not None and ours(place)
    except Exception:  # whatever its parser says of somebody else's bytes
        return False


def _demand_writable(folder: Path) -> None:
    place = next(at for at in (folder, *folder.parents) if at.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {place}")


@contextlib.contextmanager
def _folders(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; those that were made are gone if the body fails."""
    missing = [at for at in (folder, *folder.parents) if not at.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for made in missing:
            with contextlib.suppress(OSError):  # not made, or in use
                made.rmdir()
        raise


@contextlib.contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A name of our own in ``folder``, and nothing under it afterwards."""
    staged = folder / f"{_STAGED}{secrets.token_hex(8)}"
    try:
        yield staged
    finally:
        if staged.is_dir():
            shutil.rmtree(staged, ignore_errors=True)
        else:
            staged.unlink(missing_ok=True)


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put(staged: Path, place: Path, replace: bool, path: str | os.PathLike[str]) -> None:
    """Move a file to its place; what appeared there since it was looked at is not replaced."""
    if replace:
        staged.replace(place)
        return
    try:
        os.link(staged, place)
    except FileExistsError:
        raise _taken(path, f"{path} has appeared meanwhile.") from None
    except OSError:  # a file system without links
        if os.path.lexists(place):
            raise _taken(path, f"{path} has appeared meanwhile.") from None
        staged.rename(place)


def _taken(path: str | os.PathLike[str], message: str) -> OutputError:
    return OutputError(
        "out-taken",
        message,
        remedy=f"Name another file, or move {path} away. Nothing was changed.",
    )


@contextlib.contextmanager
def _typed(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        said = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            "out-unwritable",
            f"{path} cannot be written: {said}.",
            remedy="Make room on the disk, or name a place where this user may write.",
        ) from error
