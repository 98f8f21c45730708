"""The table (Markdown) and the chart (SVG) of ``benchmarks.quality``, from its result files."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality_rows import ROWS

BEGIN, END = "<!-- quality table: {} -->", "<!-- end of quality table: {} -->"
_COLOURS = {None: "#1b6e53", 8.0: "#c77700", 3.0: "#a3263c"}


@dataclass(frozen=True)
class Cell:
    """A row at an epsilon: the best rate's runs over the seeds."""

    losses: tuple[float, ...]
    rate: float
    runs: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.losses)

    @property
    def spread(self) -> float:
        return statistics.stdev(self.losses) if len(self.losses) > 1 else 0.0


def cells(folder: Path) -> dict[tuple[str, float | None], Cell | str]:
    """By (row, epsilon): the cell, or the reason of a refusal."""
    by_rate: dict[tuple[str, float | None], dict[float, list[dict[str, Any]]]]
    by_rate = defaultdict(lambda: defaultdict(list))
    found: dict[tuple[str, float | None], Cell | str] = {}
    for path in sorted(folder.glob("*.json")):
        run = json.loads(path.read_text())
        key = (run["row"], run["epsilon"])
        if "refused" in run:
            found[key] = run["refused"]
        else:
            by_rate[key][run["rate"]].append(run)
    for key, rates in by_rate.items():
        most = max(len(runs) for runs in rates.values())
        made = [
            Cell(tuple(run["loss"] for run in runs), rate, tuple(runs))
            for rate, runs in rates.items()
            if len(runs) == most
        ]
        found[key] = min(made, key=lambda cell: cell.mean if math.isfinite(cell.mean) else 1e9)
    return found


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _text(cell: Cell | str | None) -> tuple[str, str]:
    if cell is None:
        return "not run", ""
    if isinstance(cell, str):
        return "none", ""
    spread = f" ± {cell.spread:.3f}" if len(cell.losses) > 1 else ""
    return f"{cell.mean:.3f}{spread}", f"{math.exp(min(cell.mean, 50)):.1f}"


def table(folder: Path) -> str:
    """The Markdown table."""
    found = cells(folder)
    lines = [
        "| row | loss at ε = ∞ | ppl | at ε = 8 | ppl | at ε = 3 | ppl | up | down | device s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    runs = [cell.runs for cell in found.values() if isinstance(cell, Cell)]
    if runs:
        seeds = sorted({run["seed"] for group in runs for run in group})
        before = statistics.mean({run["seed"]: run["before"] for g in runs for run in g}.values())
        ppl = f"{math.exp(before):.1f}"
        base = f"| base model | {before:.3f} | {ppl} | | | | | 0 B | 0 B | 0 |"
        lines.append(base)
        lines.insert(0, f"Seeds {seeds}; ± is the standard deviation over them.\n")
    for row in ROWS:
        if not row.exists:
            lines.append(f"| {row.name} | not in this version | | | | | | | | |")
            continue
        parts = [_text(found.get((row.name, epsilon))) for epsilon in (None, 8.0, 3.0)]
        private = found.get((row.name, 8.0))
        shown = private if isinstance(private, Cell) else found.get((row.name, None))
        costs = ["", "", ""]
        if isinstance(shown, Cell):
            run = shown.runs[0]
            seconds = statistics.mean(r["device_seconds"] for r in shown.runs)
            costs = [_size(run["bytes_up"]), _size(run["bytes_down"]), f"{seconds:.1f}"]
        cols = [text for pair in parts for text in pair]
        lines.append("| " + " | ".join([row.name, *cols, *costs]) + " |")
    return "\n".join(lines) + "\n"


def chart(folder: Path) -> str:
    """The SVG: one line of marks per row, one colour per epsilon, whiskers for the spread."""
    found = cells(folder)
    names = [row.name for row in ROWS if any((row.name, e) in found for e in (None, 8.0, 3.0))]
    values = [cell for cell in found.values() if isinstance(cell, Cell)]
    if not values:
        return ""
    before = values[0].runs[0]["before"]
    low = min(cell.mean - cell.spread for cell in values) - 0.1
    high = min(max(max(cell.mean + cell.spread for cell in values), before) + 0.1, before + 1.0)
    height, left, width = 60 + 26 * len(names), 130, 540

    def x(loss: float) -> float:
        return left + (min(loss, high) - low) / (high - low) * width

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{x(before):.1f}" x2="{x(before):.1f}" y1="10" y2="{height - 40}" '
        'stroke="#888" stroke-dasharray="4 3"/>',
        f'<text x="{x(before):.1f}" y="{height - 26}" text-anchor="middle" fill="#666">'
        "base model</text>",
    ]
    for i, name in enumerate(names):
        y = 22 + 26 * i
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{name}</text>')
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#e4e4e4"/>')
        for offset, epsilon in ((-4, None), (0, 8.0), (4, 3.0)):
            cell = found.get((name, epsilon))
            if not isinstance(cell, Cell):
                continue
            colour, at = _COLOURS[epsilon], y + offset
            parts.append(
                f'<line x1="{x(cell.mean - cell.spread):.1f}" x2="{x(cell.mean + cell.spread):.1f}"'
                f' y1="{at}" y2="{at}" stroke="{colour}"/>'
                f'<circle cx="{x(cell.mean):.1f}" cy="{at}" r="4" fill="{colour}"/>'
            )
    ticks = [low + (high - low) * k / 5 for k in range(6)]
    parts += [
        f'<text x="{x(t):.1f}" y="{height - 10}" text-anchor="middle">{t:.2f}</text>' for t in ticks
    ]
    for k, (epsilon, colour) in enumerate(_COLOURS.items()):
        label = "∞" if epsilon is None else f"{epsilon:g}"
        parts.append(
            f'<circle cx="{10}" cy="{height - 40 + 13 * k}" r="4" fill="{colour}"/>'
            f'<text x="20" y="{height - 36 + 13 * k}">ε = {label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_report(folder: Path, into: Path | None) -> None:
    """Print the table; with ``into`` put it between its marks there, and the chart beside it."""
    made = table(folder)
    print(made)
    if into is None:
        return
    begin, end = BEGIN.format(folder.name), END.format(folder.name)
    text = into.read_text()
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    into.write_text(f"{before}{begin}\n{made}{end}{after}")
    (into.parent / f"quality-{folder.name}.svg").write_text(chart(folder))
