"""The training data of ``secagg join``: JSON lines of pairs, or of labelled texts."""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from client_sdk.examples import Example

_LINE_BYTES_MAX = 1 << 20
_REMEDY = (
    'Each line is {"prompt": "...", "answer": "..."} for a language model, or {"text": "...", '
    '"label": 0} for a classifier, its class a number from 0 on.'
)


def read_rows(path: Path) -> list[Example]:
    """Question-answer pairs and labelled texts from a JSON-lines file, blank lines left out.

    Returns what ``LoraTrainer`` takes: ``(prompt, answer)`` or ``{"text": ..., "label": ...}``, and
    ``Unread`` in the place of any other line: no line may keep the others from being used.

    Raises:
        CommandError: ``data-missing``.
    """
    from client_sdk.examples import Unread

    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise CommandError("data-missing", f"{path} cannot be read: {error}") from error
    rows: list[Example] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _record(line)
            what = f"Line {number} is neither a pair nor a labelled text."  # what it is, is private
            rows.append(_pair(record) or _labelled(record) or Unread(what))
    return rows


def left_out(path: Path, rows: Sequence[Example]) -> str | None:
    """What to tell of lines that are no examples; None if there are none, and some that are."""
    from client_sdk.examples import Unread

    unread = [row.sentence for row in rows if isinstance(row, Unread)]
    if rows and not unread:
        return None
    several = f"{len(unread)} of {len(rows)} lines of {path} count as empty. {' '.join(unread[:3])}"
    told = several if rows else f"{path} holds no example."
    if len(unread) == len(rows):
        told += " Where a task adds noise, this device will give noise alone."
    return f"{told} {_REMEDY}"


def _record(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode()) if len(line) <= _LINE_BYTES_MAX else None
    except (ValueError, RecursionError):
        record = None
    return record if isinstance(record, dict) else {}


def _pair(record: dict[str, Any]) -> Example | None:
    prompt, answer = record.get("prompt"), record.get("answer")
    if isinstance(prompt, str) and isinstance(answer, str) and prompt and answer:
        return prompt, answer
    return None


def _labelled(record: dict[str, Any]) -> Example | None:
    text, label = record.get("text"), record.get("label")
    if isinstance(text, str) and text and type(label) is int and label >= 0:
        return {"text": text, "label": label}
    return None
