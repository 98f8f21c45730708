"""Options that are numbers: the range that the help states is the one that holds."""

from __future__ import annotations

from typing import Any

import typer


def number(
    help: str,
    *names: str,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """An option from ``low`` to ``high``, both included, or beyond ``above`` and under ``below``.

    One end at least is given, so NaN is never in a range; infinity is in one without an upper end.
    """

    def check(value: float | None) -> float | None:
        if value is None:
            return None
        fits = (
            (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
            and (below is None or value < below)
        )
        if not fits:
            raise typer.BadParameter(f"{value} is not in the range {shown}.")
        return value

    check.ends = (low, high, above, below)  # type: ignore[attr-defined]
    left = (
        f"{_shown(low)}<=" if low is not None else f"{_shown(above)}<" if above is not None else ""
    )
    right = (
        f"<={_shown(high)}"
        if high is not None
        else f"<{_shown(below)}"
        if below is not None
        else ""
    )
    shown = f"{left}x{right}"
    return typer.Option(*names, help=f"{help} [{shown}]", callback=check)


def _shown(end: float) -> str:
    return str(end) if isinstance(end, int) else f"{end:g}"
