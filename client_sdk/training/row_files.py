"""Files of examples: JSON lines, or one JSON array, in UTF-8 with or without a mark.

Lines end at LF or CRLF and nowhere else: what Unicode calls a line separator may stand in a text.
A line that is not a JSON object keeps its place, since no example may keep the others from being
used. What is refused is the file: it is not there, or is of another encoding or format, which is
seen from its first bytes and from no example. Where the first bytes are text and could be a bad
line too, no line of the file is a row.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from client_sdk.errors import ContributionError
from client_sdk.training.row_forms import CHARACTERS_MAX

# An escape such as \\u00e9 is six bytes, and a character may need two: a line of so many bytes
# can be an example that is just short enough.
LINE_BYTES_MAX = 12 * CHARACTERS_MAX
_UTF8 = "Save it as UTF-8."
_ENCODINGS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_FORMATS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "ZIP (or a spreadsheet)"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"\xff\xff\xff\xff", "Arrow"),
    (b"Obj\x01", "Avro"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "NumPy"),
    (b"\xd0\xcf\x11\xe0", "Excel, of before 2007"),
    (b"7z\xbc\xaf", "7-Zip"),
)
_AS_LINES = "Write it as JSON lines."
_FROM_TABLE = (
    'Write it as JSON lines: pandas.read_csv(...).to_json(..., orient="records", lines=True).'
)
_TEXT_FORMATS = (  # by their first bytes in lower case, and the way out
    (b"version https://git-lfs", "a pointer of Git LFS", "Fetch the file itself: git lfs pull."),
    (b"<!doctype", "HTML", "Fetch the file itself, not the page about it."),
    (b"<html", "HTML", "Fetch the file itself, not the page about it."),
    (b"<?xml", "XML", _AS_LINES),
    (b"%pdf-", "PDF", "Write its conversations as JSON lines."),
    (b"{\\rtf", "RTF", "Write its conversations as JSON lines."),
)
_SEPARATED = {",": "CSV", "\t": "TSV", ";": "CSV, with semicolons", "|": "CSV, with bars"}
_COLUMN = re.compile(r"[^\W\d][\w .-]{0,39}")  # prose has a space behind its comma


@dataclass(frozen=True)
class Unread:
    """What stands in the place of an example that a reader of files could not read, and why."""

    sentence: str


@dataclass(frozen=True)
class RowFile(Sequence[Any]):
    """The examples of one file, in order.

    Attributes:
        rows: JSON values, and ``Unread`` in the place of what is not one.
        lines: of each row, from 1; None: the file is one JSON array.
    """

    path: Path
    rows: tuple[Any, ...]
    lines: tuple[int, ...] | None

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def line(self, index: int) -> int | None:
        """From 1, of the example at ``index`` (from 0); None: in an array, or the file has none."""
        return self.lines[index] if self.lines and index < len(self) else None

    def place(self, index: int) -> str:
        """For people: where in the file the example at ``index`` (from 0) stands."""
        line = self.line(index)
        if line is None:
            return f"example {index} of {self.path.name}"
        return f"line {line} of {self.path.name}"


def read_file(path: str | os.PathLike[str]) -> RowFile:
    """The rows of a file; blank lines do not count.

    Raises:
        ContributionError: ``data-missing``, ``data-unreadable``, ``data-encoding``,
            ``data-format``.
    """
    path = Path(path)
    data = _bytes_of(path).removeprefix(codecs.BOM_UTF8)
    _check_format(path, data)
    lines = [(n, line) for n, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    numbers = tuple(number for number, _ in lines)
    rows = [_read_line(line) for _, line in lines]
    begins = lines[0][1].lstrip()[:1] if lines else b""
    alone = len(rows) == 1 and not _is_pair(rows[0])
    if begins == b"[" and (alone or isinstance(rows[0], Unread)):
        # What is not UTF-8 then fails in its own item, as half of a surrogate pair.
        whole = _read(data, errors="surrogateescape")
        if isinstance(whole, list):
            return RowFile(path, tuple(whole), None)
        rows[0] = Unread(f"The file begins like a JSON array and is not one. {whole.sentence}")
    if begins == b"{" and isinstance(rows[0], Unread) and isinstance(whole := _read(data), dict):
        return RowFile(path, (whole,), numbers[:1])  # one object over several lines
    if not any(map(_is_row, rows)):
        _check_text_format(path, data)
    return RowFile(path, tuple(rows), numbers)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ContributionError(
            "data-missing", f"{path} is not there.", remedy="Name a file of rows that is there."
        ) from error
    except IsADirectoryError as error:
        raise ContributionError(
            "data-unreadable",
            f"{path} is a folder.",
            remedy="Name one file. What datasets.save_to_disk wrote is loaded by "
            "datasets.load_from_disk and given to LoraTrainer.",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise ContributionError("data-unreadable", f"{path} cannot be read: {error}") from error


def _check_format(path: Path, data: bytes) -> None:
    """By the first bytes, with which no JSON text in UTF-8 begins."""
    for mark, encoding in _ENCODINGS:
        if data.startswith(mark):
            raise _encoding(path, encoding)
    first = data[:4]
    if first.count(0) == 3:
        raise _encoding(path, "UTF-32")
    if len(first) > 1 and 0 in (first[0], first[1]) and first[0] != first[1]:
        raise _encoding(path, "UTF-16")
    for mark, name in _FORMATS:
        if data.startswith(mark):
            raise _format(path, name, "Unpack it, or write it as JSON lines.")


def _check_text_format(path: Path, data: bytes) -> None:
    """Of a file without a row."""
    begins = data.lstrip()[:64].lower()
    for mark, name, remedy in _TEXT_FORMATS:
        if begins.startswith(mark):
            raise _format(path, name, remedy)
    if b"\n" not in data and sum(_is_row(_read_line(line)) for line in data.split(b"\r")) > 1:
        raise _format(
            path, "JSON lines that end at CR alone", "Save it with lines that end at LF or CRLF."
        )
    text = data.decode(errors="replace")
    for separator, name in _SEPARATED.items():
        if _is_table(text, separator):
            raise _format(path, name, _FROM_TABLE)


def _is_table(text: str, separator: str) -> bool:
    """Whether the first record names columns, and the second has as many fields."""
    records = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names, fields = itertools.islice(filter(None, records), 2)
    except (ValueError, csv.Error):
        return False
    named = len(set(names)) == len(names) > 1 and all(map(_COLUMN.fullmatch, names))
    return named and len(fields) == len(names)


def _format(path: Path, found: str, remedy: str) -> ContributionError:
    return ContributionError(
        "data-format",
        f"{path} is a file of another format.",
        expected="JSON lines or a JSON array, as text",
        found=found,
        remedy=remedy,
    )


def _encoding(path: Path, found: str) -> ContributionError:
    return ContributionError(
        "data-encoding",
        f"{path} is text of another encoding.",
        expected="UTF-8",
        found=found,
        remedy=f"{_UTF8} PowerShell does so with -Encoding utf8.",
    )


def _read_line(line: bytes) -> Any:
    if len(line) > LINE_BYTES_MAX:
        return Unread(f"It has {len(line)} bytes, and a line at most {LINE_BYTES_MAX}.")
    return _read(line)


def _read(data: bytes, errors: str = "strict") -> Any:
    """A JSON object or list, or why it is not one."""
    try:
        # Raw tabs in texts, which many programs write, are read too.
        text = data.decode(errors=errors)
        value = json.loads(text, strict=False, object_pairs_hook=_object, parse_int=_number)
    except UnicodeDecodeError as error:
        return Unread(
            f"It is not UTF-8 (byte {error.start + 1}) and may be Latin-1 (Windows-1252). {_UTF8}"
        )
    except json.JSONDecodeError as error:
        said = error.msg.partition(":")[0]  # what follows may quote
        line = "" if error.lineno == 1 else f"line {error.lineno}, "
        return Unread(f"It is not JSON: {said} ({line}character {error.colno}).")
    except RecursionError:
        return Unread("It is JSON that is nested too deeply.")
    if not isinstance(value, dict | list | Unread):
        return Unread("It is JSON, but not an object.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """Which of two values counts would be a guess."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else Unread("A key stands in one object twice.")


def _number(digits: str) -> Any:
    try:
        return int(digits)
    except ValueError:  # thousands of digits
        return Unread("It is a number that is too long.")


def _is_row(row: Any) -> bool:
    return (isinstance(row, dict) and bool(row)) or _is_pair(row)


def _is_pair(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 2 and all(isinstance(p, str) for p in row)
