"""Losses that evaluations measured, for a report: the operator's word, beside what a ledger shows.

A ledger holds the digests of sums and no loss. ``secagg task show NAME --format json`` of an
evaluation has the losses; each of its releases must be one of the audited ledger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from secagg.files.text import TextFile
from secagg_cli.output import UnusableArgument

if TYPE_CHECKING:
    from dp.report import ReportData

_FILE = TextFile(
    "evaluation", UnusableArgument, "evaluation-missing", "evaluation-malformed", 64 << 20
)


class Measured(msgspec.Struct, frozen=True):
    """One release. ``loss``: nats per token; None: not stated, as under noise it may be."""

    task: str
    number: int
    at: float
    loss: float | None
    accuracy: float | None
    examples: float | None


class _Release(msgspec.Struct):
    release: int
    outcome: str
    survivors: int
    leaf_index: int
    released_at: float
    metrics: dict[str, float | None]


class _Task(msgspec.Struct):
    task: str
    releases: tuple[_Release, ...]


def read_evaluations(paths: Sequence[Path], data: ReportData) -> list[Measured]:
    """By time.

    Raises:
        UnusableArgument: ``evaluation-missing``, ``evaluation-malformed``;
            ``evaluation-not-in-ledger``: a release is not one of the ledger's.
    """
    known = {
        (task.task, row.number, row.leaf, row.survivors)
        for task in data.tasks
        for row in task.releases
        if row.outcome == "released"
    }
    found = []
    for path in paths:
        for row, task in _rows(path):
            if (task, row.release, row.leaf_index, row.survivors) not in known:
                raise UnusableArgument(
                    "evaluation-not-in-ledger",
                    f"{path} has a release that the ledger does not have.",
                    expected="releases of this ledger",
                    found=f"task {task!r}, charge {row.release}, record {row.leaf_index}",
                    remedy="Give the ledger of the service that ran the evaluation.",
                )
            values = (row.metrics.get(name) for name in ("loss", "accuracy", "examples"))
            found.append(Measured(task, row.release, row.released_at, *values))
    return sorted(found, key=lambda row: row.at)


def _rows(path: Path) -> list[tuple[_Release, str]]:
    try:
        task = msgspec.json.decode(_FILE.read(path), type=_Task)
    except msgspec.MsgspecError as error:
        raise UnusableArgument(
            "evaluation-malformed",
            f"{path} is not what `secagg task show NAME --format json` prints: {error}.",
        ) from error
    return [(row, task.task) for row in task.releases if row.outcome == "released"]
