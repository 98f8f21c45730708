"""The training data of ``secagg join``: JSON lines of pairs, or of labelled texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from client_sdk.examples import Example

_LINE_CHARACTERS_MAX = 1 << 20
_REMEDY = (
    'Each line is {"prompt": "...", "answer": "..."} for a language model, or {"text": "...", '
    '"label": 0} for a classifier, its class a number from 0 on.'
)


def read_rows(path: Path) -> list[Example]:
    """Question-answer pairs, or labelled texts, from a JSON-lines file; one kind in a file.

    Returns what ``LoraTrainer`` takes: ``(prompt, answer)`` or ``{"text": ..., "label": ...}``.

    Raises:
        CommandError: ``data-missing``, ``data-malformed`` (with the line), ``data-mixed`` (with
            the line of the second kind), ``data-empty``.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError("data-missing", f"{path} cannot be read: {error}") from error
    rows: list[Example] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _record(line)
        row = _pair(record) or _labelled(record)
        if row is None:
            raise CommandError(
                "data-malformed",  # what stands there is private
                f"{path}, line {number} is neither a pair nor a labelled text.",
                remedy=_REMEDY,
            )
        if rows and type(row) is not type(rows[0]):
            raise CommandError(
                "data-mixed",
                f"{path}, line {number} is of another kind than the lines before it.",
                remedy="Give pairs or labelled texts, not both: a model learns from one kind.",
            )
        rows.append(row)
    if not rows:
        raise CommandError("data-empty", f"{path} holds no example.", remedy=_REMEDY)
    return rows


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line) if len(line) <= _LINE_CHARACTERS_MAX else None
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
