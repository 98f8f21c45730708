"""How far a round's passes over the rows are."""

from __future__ import annotations

from collections.abc import Callable


def _nobody(done: int, total: int) -> None:
    pass


class Passes:
    """Counts the rows that have had their pass. How many there will be is an estimate: batches that
    are still to come count like the present one."""

    def __init__(self, tell: Callable[[int, int], None] = _nobody) -> None:
        """``tell`` hears rows done and rows in all after each pass; both are as secret as the
        batch."""
        self._tell = tell
        self._batches = 1  # to come
        self._done = self._total = 0

    def expect(self, batches: int) -> None:
        """So many batches follow in this round."""
        self._batches = batches

    def begin(self, rows: int) -> None:
        """A batch of so many rows."""
        self._total = self._done + rows * max(1, self._batches)
        self._batches -= 1

    def passed(self, rows: int) -> None:
        self._done += rows
        self._tell(self._done, max(self._done, self._total))
