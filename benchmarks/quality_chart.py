"""The charts (SVG) of ``benchmarks.quality``: all rows side by side, and loss against epsilon."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.quality_plan import Cell, Plan, Results, cells, mean, spread

_COLOURS = ("#1b6e53", "#c77700", "#a3263c", "#3457a6")
_ABOVE = 1.0  # losses further than that above the untrained model are drawn there


def chart(
    plan: Plan, results: Results, rows: Sequence[str], references: Mapping[str, float]
) -> str:
    """A line of marks per row that has runs, a colour per epsilon, whiskers for the spread."""
    made = _finished(plan, results, rows)
    names = [row for row in rows if any(row == name for name, _ in made)]
    figure = Figure(figsize=(7.2, 1.2 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for k, (epsilon, colour) in enumerate(zip(plan.epsilons, _COLOURS, strict=False)):
        shown = [(i, made[n, epsilon]) for i, n in enumerate(names) if (n, epsilon) in made]
        axes.errorbar(
            [mean(cell) for _, cell in shown],
            [i + (k - 1) * 0.2 for i, _ in shown],
            xerr=[spread(cell) for _, cell in shown],
            fmt="o",
            color=colour,
            label=f"ε = {_name(epsilon)}",
        )
    for name, loss in references.items():
        axes.axvline(loss, color="#888", linestyle="--", linewidth=1)
        axes.annotate(
            name, (loss, 1.01), xycoords=("data", "axes fraction"), ha="center", fontsize=8
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(right=min(axes.get_xlim()[1], max(references.values()) + _ABOVE))
    axes.set_xlabel("held-out loss, nats per answer token")
    axes.grid(axis="y", color="#e4e4e4")
    figure.legend(loc="outside right upper", fontsize=8)
    return _svg(figure, results.path.stem)


def curve(lines: Mapping[str, Sequence[Cell]], references: Mapping[str, float], salt: str) -> str:
    """Loss against epsilon: a line of cells for each label, whiskers for the spread.

    Cells without runs are left out. ``salt`` makes the names in the SVG.
    """
    shown = {label: [cell for cell in line if _is_finished(cell)] for label, line in lines.items()}
    found = {cell.epsilon for line in shown.values() for cell in line}
    epsilons = sorted(found, key=lambda epsilon: epsilon or math.inf)
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    for (label, line), colour in zip(shown.items(), _COLOURS, strict=False):
        ordered = sorted(line, key=lambda cell: epsilons.index(cell.epsilon))
        axes.errorbar(
            [epsilons.index(cell.epsilon) for cell in ordered],
            [mean(cell) for cell in ordered],
            yerr=[spread(cell) for cell in ordered],
            fmt="o-",
            capsize=3,
            color=colour,
            label=label,
        )
    for (name, loss), style in zip(references.items(), ("--", ":"), strict=False):
        axes.axhline(loss, color="#888", linestyle=style, label=name)
    axes.set_xticks(range(len(epsilons)), [_name(epsilon) for epsilon in epsilons])
    axes.set_xlabel("ε of the whole run, δ = 10⁻⁵")
    axes.set_ylabel("held-out loss")
    axes.legend(fontsize=8)
    return _svg(figure, salt)


def _finished(
    plan: Plan, results: Results, rows: Sequence[str]
) -> dict[tuple[str, float | None], Cell]:
    made = cells(plan, results, rows)
    return {k: cell for k, cell in made.items() if _is_finished(cell)}


def _is_finished(cell: Cell) -> bool:
    return bool(cell.tests()) and math.isfinite(mean(cell))


def _name(epsilon: float | None) -> str:
    return "∞" if epsilon is None else f"{epsilon:g}"


def is_chart(path: Path) -> bool:
    """Whether an earlier chart stands there."""
    text = path.read_text("utf-8")
    return "<svg" in text and "held-out loss" in text


def _svg(figure: Figure, salt: str) -> str:
    """The same results give the same bytes."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
