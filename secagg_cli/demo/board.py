"""The demo on a terminal: one bar for the rounds and one a device, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

# A device's way through one round; unknown events do not move its bar.
_STEPS = (
    "checked-in",
    "training",
    "trained",
    "reported",
    "roster",
    "shared",
    "checked",
    "masking",
    "uploading",
    "uploaded",
    "confirmed",
    "unmasked",
    "released",
)


class Board:
    """Bars that follow the devices' events. Silent where standard error is not a terminal."""

    def __init__(self, console: Console, names: Sequence[str], rounds: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else text for a file would go to the terminal
            disable=not console.is_terminal,
        )
        self._rounds = self._progress.add_task("rounds", total=rounds, state=f"0 of {rounds}")
        self._total = rounds
        self._devices: list[TaskID] = [
            self._progress.add_task(name, total=len(_STEPS), state="starting") for name in names
        ]

    def show(self, device: int, kind: str) -> None:
        completed = _STEPS.index(kind) + 1 if kind in _STEPS else None
        self._progress.update(self._devices[device], completed=completed, state=kind)

    def round_done(self, number: int) -> None:
        self._progress.update(self._rounds, completed=number, state=f"{number} of {self._total}")

    def __enter__(self) -> Board:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
