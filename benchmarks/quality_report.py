"""The table (Markdown) and the chart (SVG) of ``benchmarks.quality``, from its results file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.quality_plan import Cell, Plan, Results, loss_of
from benchmarks.quality_rows import ROWS

BEGIN, END = "<!-- quality table: {} -->", "<!-- end of quality table: {} -->"
_COLOURS = {None: "#1b6e53", 8.0: "#c77700", 3.0: "#a3263c"}
_LINES = ("#1b6e53", "#a3263c", "#c77700", "#3457a6")
Cells = dict[tuple[str, float | None], Cell]


def cells(plan: Plan, results: Results) -> Cells:
    """By row and epsilon."""
    found = results.all()
    return {
        (row.name, epsilon): Cell(plan, found, row.name, epsilon)
        for row in ROWS
        for epsilon in plan.epsilons
    }


def mean(cell: Cell) -> float:
    return statistics.mean(loss_of(run) for run in cell.tests())


def spread(cell: Cell) -> float:
    """Standard deviation over the seeds; 0 for a single one."""
    losses = [loss_of(run) for run in cell.tests()]
    return statistics.stdev(losses) if len(losses) > 1 and math.isfinite(sum(losses)) else 0.0


def table(plan: Plan, results: Results, references: Mapping[str, float]) -> str:
    """The Markdown table, with what has to be known to read it."""
    made = cells(plan, results)
    names = ["∞" if epsilon is None else f"{epsilon:g}" for epsilon in plan.epsilons]
    heads = [text for name in names for text in (f"loss at ε = {name}", "ppl")]
    columns = ["row", *heads, "up", "down", "device s", f"rates at ε = {', '.join(names)}"]
    rows = [columns, ["---"] * len(columns)]
    for name, loss in references.items():
        rows.append(_line(name, [f"{loss:.3f}", _perplexity(loss)], len(columns)))
    for row in ROWS:
        of_row = [made[row.name, epsilon] for epsilon in plan.epsilons]
        if not row.exists:
            rows.append(_line(row.name, ["not in this version"], len(columns)))
            continue
        losses = [text for cell in of_row for text in _loss(cell, len(plan.seeds))]
        rates = ", ".join(_rate(cell) for cell in of_row)
        rows.append([row.name, *losses, *_costs(of_row), rates])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", _notes(plan, results)]) + "\n"


def _line(name: str, parts: Sequence[str], length: int) -> list[str]:
    return [name, *parts, *[""] * (length - 1 - len(parts))]


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 50)):.0f}"


def _loss(cell: Cell, wanted: int) -> tuple[str, str]:
    if cell.refused is not None:
        return "none", ""
    runs = cell.tests()
    if not runs:
        return ("rate not chosen yet" if cell.begun else "not run"), ""
    failed = sum(1 for run in runs if not math.isfinite(loss_of(run)))
    if failed:
        return f"{failed} of {len(runs)} diverged", ""
    few = f" ({len(runs)} seeds)" if len(runs) < wanted else ""
    return f"{mean(cell):.3f} ± {spread(cell):.3f}{few}", _perplexity(mean(cell))


def _rate(cell: Cell) -> str:
    if cell.rate is None or not cell.tests():
        return "–"
    return f"{cell.rate:g}{'*' if cell.at_the_edge else ''}"


def _costs(of_row: Sequence[Cell]) -> list[str]:
    """Bytes of one device over all releases, and its CPU seconds; of a private cell if any."""
    runs = [run for cell in of_row for run in cell.tests() if "bytes_up" in run]
    if not runs:
        return ["", "", ""]
    seconds = statistics.mean(run["device_seconds"] for run in runs)
    return [_size(runs[-1]["bytes_up"]), _size(runs[-1]["bytes_down"]), f"{seconds:.1f}"]


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _notes(plan: Plan, results: Results) -> str:
    found = results.all()
    loads = [run["load"] for run in found.values()]
    shown = " ".join(f"{rate:g}" for rate in plan.rates)
    text = (
        f"± is the standard deviation over {len(plan.seeds)} seeds. Rates tried in every row: "
        f"{shown}; * marks a choice at their edge. "
        f"{sum(1 for key in found if key.phase == 'tune')} runs to choose rates, "
        f"{sum(1 for key in found if key.phase == 'test')} reported."
    )
    if loads:
        text += (
            f" Device seconds are CPU time on a machine under a load of {min(loads):g} to "
            f"{max(loads):g}."
        )
    errors = [run["product_error"] for run in found.values() if "product_error" in run]
    if errors:
        text += (
            " Averaged factors of plain LoRA, in the last release, are off the mean of the "
            f"products by {100 * statistics.median(errors):.1f} % in the median run "
            f"and {100 * max(errors):.0f} % in the worst (Frobenius norm)."
        )
    return text


def chart(plan: Plan, results: Results, references: Mapping[str, float]) -> str:
    """The SVG: one line of marks per row, one colour per epsilon, whiskers for the spread."""
    made = {
        key: cell
        for key, cell in cells(plan, results).items()
        if cell.tests() and math.isfinite(mean(cell))
    }
    names = [row.name for row in ROWS if any(name == row.name for name, _ in made)]
    if not names:
        return ""
    top, bottom = max(references.values()), min(references.values())
    low = min(bottom, *(mean(cell) - spread(cell) for cell in made.values())) - 0.1
    high = min(max(top, *(mean(c) + spread(c) for c in made.values())) + 0.1, top + 1.0)
    height, left, width = 60 + 26 * len(names), 140, 530

    def x(loss: float) -> float:
        return left + (min(loss, high) - low) / (high - low) * width

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for name, loss in references.items():
        parts.append(
            f'<line x1="{x(loss):.1f}" x2="{x(loss):.1f}" y1="10" y2="{height - 40}" '
            'stroke="#888" stroke-dasharray="4 3"/>'
            f'<text x="{x(loss):.1f}" y="{height - 26}" text-anchor="middle" fill="#666">'
            f"{name}</text>"
        )
    for i, name in enumerate(names):
        y = 22 + 26 * i
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{name}</text>')
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#e4e4e4"/>')
        for offset, epsilon in zip((-5, 0, 5), _COLOURS, strict=True):
            cell = made.get((name, epsilon))
            if cell is not None:
                parts.append(_mark(cell, _COLOURS[epsilon], y + offset, x))
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


def _mark(cell: Cell, colour: str, y: int, x: Callable[[float], float]) -> str:
    middle, half = mean(cell), spread(cell)
    return (
        f'<line x1="{x(middle - half):.1f}" x2="{x(middle + half):.1f}" y1="{y}" y2="{y}" '
        f'stroke="{colour}"/><circle cx="{x(middle):.1f}" cy="{y}" r="4" fill="{colour}"/>'
    )


def curve(
    plan: Plan, results: Results, rows: Sequence[str], references: Mapping[str, float]
) -> str:
    """The SVG of loss against epsilon: a line for each of ``rows``, whiskers for the spread."""
    made = cells(plan, results)
    epsilons = sorted(plan.epsilons, key=lambda epsilon: epsilon or math.inf)
    known = [
        (name, [(k, made[name, e]) for k, e in enumerate(epsilons) if made[name, e].tests()])
        for name in rows
    ]
    base = references["base model"]
    losses = [base, *(mean(cell) for _, marks in known for _, cell in marks)]
    low, high = min(losses) - 0.1, max(losses) + 0.1
    left, width, height = 60, 420, 300

    def x(place: int) -> float:
        return left + 30 + place * (width - 60) / max(1, len(epsilons) - 1)

    def y(loss: float) -> float:
        return 20 + (high - min(loss, high)) / (high - low) * (height - 70)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<line x1="{left}" x2="{left + width}" y1="{y(base):.1f}" y2="{y(base):.1f}" '
        'stroke="#888" stroke-dasharray="4 3"/>'
        f'<text x="{left + width}" y="{y(base) - 5:.1f}" text-anchor="end" fill="#666">'
        "base model</text>",
        f'<text x="{left + width / 2}" y="{height - 6}" text-anchor="middle">ε</text>',
        f'<text x="14" y="{height / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {height / 2})">held-out loss</text>',
    ]
    for k, epsilon in enumerate(epsilons):
        label = "∞" if epsilon is None else f"{epsilon:g}"
        parts.append(f'<text x="{x(k):.1f}" y="{height - 26}" text-anchor="middle">{label}</text>')
    for k in range(6):
        loss = low + (high - low) * k / 5
        parts.append(
            f'<text x="{left - 6}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.2f}</text>'
            f'<line x1="{left}" x2="{left + width}" y1="{y(loss):.1f}" y2="{y(loss):.1f}" '
            'stroke="#eee"/>'
        )
    for (name, marks), colour in zip(known, _LINES, strict=False):
        points = " ".join(f"{x(k):.1f},{y(mean(cell)):.1f}" for k, cell in marks)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        for k, cell in marks:
            middle, half = mean(cell), spread(cell)
            parts.append(
                f'<line x1="{x(k):.1f}" x2="{x(k):.1f}" y1="{y(middle - half):.1f}" '
                f'y2="{y(middle + half):.1f}" stroke="{colour}"/>'
                f'<circle cx="{x(k):.1f}" cy="{y(middle):.1f}" r="4" fill="{colour}"/>'
            )
        if marks:
            k, cell = marks[0]
            parts.append(
                f'<text x="{x(k) + 8:.1f}" y="{y(mean(cell)) - 8:.1f}" fill="{colour}">{name}</text>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write_report(
    plan: Plan, results: Results, references: Mapping[str, float], into: Path | None
) -> None:
    """Print the table; with ``into`` put it between its marks there, and the chart beside it."""
    made = table(plan, results, references)
    print(made)
    if into is None:
        return
    name = results.path.stem
    begin, end = BEGIN.format(name), END.format(name)
    text = into.read_text()
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    page = f"{head}{begin}\n{made}{end}{tail}"
    into.write_text(page if page.endswith("\n") else page + "\n")
    (into.parent / f"quality-{name}.svg").write_text(chart(plan, results, references))
