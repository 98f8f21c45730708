"""Text files that people write, copy or edit: what cannot be read is told by what was found.

The text is UTF-8, with or without a byte order mark; ends of lines stay as they are. A secret file
may be read by its owner alone. Where this user cannot change who may read it, because somebody
else owns it or its file system is read-only, its group may read it too: so secrets come into a
container.
"""

from __future__ import annotations

import codecs
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from secagg.errors import SecaggError

_UTF_8 = "Save it as UTF-8."
_IS_THERE = "Name a file that is there, and that this user may read."
_RIGHT = "Name the right file, or restore it from a copy."
_MARKS = (  # longest first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


@dataclass(frozen=True)
class TextFile:
    """A kind of file, and how its errors are called.

    Attributes:
        what: its name in a sentence, such as ``file of settings``.
        error: what is raised.
        unreadable: reason where there is no such file, or it cannot be opened.
        malformed: reason where it is empty, larger than ``bytes_max``, or not text.
        private: reason where others may read it; None: anybody may.
        remedy: what helps where there is no such file.
    """

    what: str
    error: type[SecaggError]
    unreadable: str
    malformed: str
    bytes_max: int = 1 << 20
    private: str | None = None
    remedy: str = _IS_THERE

    def read(self, path: Path) -> str:
        """The text, without its mark.

        Raises:
            error: with one of the three reasons; it names the file and what was found.
        """
        try:
            with path.open("rb") as file:
                if self.private is not None:
                    self._demand_private(path, file.fileno())
                content = file.read(self.bytes_max + 1)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise self.error(
                self.unreadable,
                f"The {self.what} {path} cannot be read: {_why(path, error)}.",
                remedy=self.remedy,
            ) from error
        return self._text(path, content)

    def _text(self, path: Path, content: bytes) -> str:
        for mark, coding in _MARKS:
            if content.startswith(mark):
                raise self._bad(path, f"it is {coding}", _UTF_8)
        content = content.removeprefix(codecs.BOM_UTF8)
        if len(content) > self.bytes_max:
            raise self._bad(path, f"it is larger than {self.bytes_max:,} bytes")
        if not content.strip():
            raise self._bad(path, "it is empty")
        if b"\0" in content:
            wide = max(content[0::2].count(0), content[1::2].count(0)) > len(content) // 4
            raise self._bad(path, "it is UTF-16" if wide else "it is binary data", _UTF_8)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            text = not any(byte < 32 and byte not in b"\t\n\f\r" for byte in content)
            found = "it is not utf-8, perhaps Latin-1" if text else "it is binary data"
            found += f": byte 0x{content[error.start]:02x} in line {line}"
            raise self._bad(path, found, _UTF_8) from error

    def _bad(self, path: Path, found: str, remedy: str | None = None) -> SecaggError:
        return self.error(
            self.malformed,
            f"The {self.what} {path} is not usable: {found}.",
            remedy=remedy or (self.remedy if self.remedy != _IS_THERE else _RIGHT),
        )

    def _demand_private(self, path: Path, descriptor: int) -> None:
        if self.private is not None and (mode := open_to_others(descriptor)) is not None:
            raise self.error(
                self.private,
                f"Others can read the {self.what} {path}.",
                expected="mode 0600",
                found=f"mode {mode:04o}",
                remedy=f"chmod 600 {path}; in Kubernetes, defaultMode: 0400 for a secret, and "
                "fsGroupChangePolicy: OnRootMismatch for a volume.",
            )


def open_to_others(descriptor: int) -> int | None:
    """The permissions of an open file that others may read; None if they may not.

    Nothing is demanded of what is not a plain file, such as a pipe, nor where nobody keeps them.
    """
    found = os.fstat(descriptor)
    if sys.platform == "win32" or not stat.S_ISREG(found.st_mode):
        return None
    read_only = bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    fixed = read_only or found.st_uid != os.geteuid()
    mode = stat.S_IMODE(found.st_mode)
    return mode if mode & (0o037 if fixed else 0o077) else None


def _why(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, PermissionError):
        return "this user may not read it"
    return getattr(error, "strerror", None) or str(error)
