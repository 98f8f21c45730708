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
            raise typer.BadParameter(f"{value:g} is not in the range {shown}.")
        return value

    check.ends = (low, high, above, below)  # type: ignore[attr-defined]
    left = f"{low:g}<=" if low is not None else f"{above:g}<" if above is not None else ""
    right = f"<={high:g}" if high is not None else f"<{below:g}" if below is not None else ""
    shown = f"{left}x{right}"
    if above is None and below is None:  # typer states these itself
        return typer.Option(*names, help=help, min=low, max=high, callback=check)
    return typer.Option(*names, help=f"{help} [{shown}]", callback=check)
