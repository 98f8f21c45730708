"""The training data of ``secagg join``: what is told of a file before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client_sdk.training.row_files import RowFile
    from client_sdk.training.rows import LeftOut

_TOLD_MAX = 3


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
    from client_sdk.training.conversations import FORMS
    from client_sdk.training.rows import unread

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


def some(left_out: tuple[LeftOut, ...]) -> str:
    """The first few, each with its place."""
    told = " ".join(map(str, left_out[:_TOLD_MAX]))
    more = len(left_out) - _TOLD_MAX
    return f"{told} And {more} more." if more > 0 else told
