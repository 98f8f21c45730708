"""The training data of ``secagg join``: what is told of a file before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client_sdk import RunResult
    from client_sdk.training.dataset import Cut, LeftOut
    from client_sdk.training.row_files import RowFile

_TOLD_MAX = 3
LISTED_MAX = 1000


def read_rows(path: Path) -> RowFile:
    """The examples of a file, as ``LoraTrainer`` reads them.

    A line that cannot be read keeps its place: it may not keep the others from being used.

    Raises:
        ContributionError: as :func:`client_sdk.training.row_files.read_file`.
    """
    from client_sdk.training.row_files import read_file

    return read_file(path)


def left_out(rows: RowFile) -> str | None:
    """What to tell of examples of no known form; None if there are none, and some that are."""
    from client_sdk.training.dataset import unread
    from client_sdk.training.row_forms import FORMS

    found = unread(rows)
    if rows and not found:
        return None
    if not rows:
        told = f"{rows.path} holds no example."
    else:
        told = f"{len(found)} of {len(rows)} examples of {rows.path} count as zero. {some(found)}"
    if len(found) == len(rows):
        told += " Where a task adds noise, this device will give noise alone."
    return f"{told.replace(f' {FORMS}', '')} {FORMS}"  # once


def used_of(rows: RowFile, result: RunResult) -> int | None:
    """How many examples were used; where nothing was trained None, or 0 if none can be."""
    from client_sdk.training.dataset import unread

    if result.used is not None:
        return result.used
    return 0 if len(unread(rows)) == len(rows) else None


def listed(rows: RowFile, told: Sequence[LeftOut | Cut]) -> list[dict[str, Any]]:
    """For programs: the first ``LISTED_MAX``, with ``line`` of the file; null in an array."""
    return [{"line": rows.line(one.index), **asdict(one)} for one in told[:LISTED_MAX]]


def some(told_of: Sequence[LeftOut | Cut]) -> str:
    """The first few, each with its place."""
    told = " ".join(map(str, told_of[:_TOLD_MAX]))
    more = len(told_of) - _TOLD_MAX
    return f"{told} And {more} more." if more > 0 else told
