"""Tasks in which this device's training fails in a row: it stays away until the app has mended it.

A failure that noise hides is charged like a contribution, and one before a cohort costs a download.
"""

from __future__ import annotations

import msgspec

from client_sdk.errors import PolicyRefusal
from client_sdk.failures import TrainingFailure
from client_sdk.state.journal import Journal

FAILURES_MAX = 3  # in a row
_NAME = "failing"


class FailingTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``count``: failures in a row; ``last``: the last one."""

    task: str
    count: int
    last: TrainingFailure


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int = 1
    entries: tuple[FailingTask, ...] = ()


class FailingTasks:
    """Of one state folder."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def entries(self) -> tuple[FailingTask, ...]:
        return (self._journal.load_record(_NAME, _Record) or _Record()).entries

    def check(self, task: str) -> None:
        """Return if the device still takes part in the task.

        Raises:
            PolicyRefusal: ``training-failing``.
        """
        for entry in self.entries:
            if entry.task == task and entry.count >= FAILURES_MAX:
                raise PolicyRefusal(
                    "training-failing",
                    f"Training for {task!r} failed {entry.count} times in a row, the last time "
                    f"with: {entry.last}",
                    expected=f"fewer than {FAILURES_MAX}",
                    found=entry.last.reason,
                    remedy="Mend what it says; then Client.try_again(task), or secagg session "
                    "try-again, begins again.",
                )

    def note(self, task: str, failure: TrainingFailure) -> int:
        """Count a failure; how many there are in a row. On disk when it returns."""
        known = next((entry.count for entry in self.entries if entry.task == task), 0)
        if not failure.counts:
            return known
        entry = FailingTask(task=task, count=known + 1, last=failure)
        self._save((*self._others(task), entry))
        return entry.count

    def clear(self, task: str) -> bool:
        """Count anew; whether any failure was counted."""
        others = self._others(task)
        if others == self.entries:
            return False
        self._save(others)
        return True

    def _others(self, task: str) -> tuple[FailingTask, ...]:
        return tuple(entry for entry in self.entries if entry.task != task)

    def _save(self, entries: tuple[FailingTask, ...]) -> None:
        self._journal.save_blob(_NAME, msgspec.msgpack.encode(_Record(entries=entries)))
