"""The table (Markdown) of ``benchmarks.quality``, from its results file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.quality_chart import chart, is_chart
from benchmarks.quality_plan import Cell, Plan, Results, cells, loss_of, mean, spread
from benchmarks.quality_rows import BATCH_ROWS, ROWS, Row
from client_sdk.outputs import check_file, write_file
from dp.schedule import participations

BEGIN, END = "<!-- quality table: {} -->", "<!-- end of quality table: {} -->"


def table(plan: Plan, results: Results, references: Mapping[str, float]) -> str:
    """The Markdown table, with what has to be known to read it."""
    made = cells(plan, results, [row.name for row in ROWS])
    names = [_epsilon(epsilon) for epsilon in plan.epsilons]
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


def batch_table(plan: Plan, results: Results, steps: int) -> str:
    """Markdown: a line for each way to choose a step's examples that was run, both forms side by
    side."""
    made = cells(plan, results, [row.name for row in BATCH_ROWS])
    forms = list(dict.fromkeys(row.kind for row in BATCH_ROWS))
    names = {kind: next(r.name.split()[0] for r in BATCH_ROWS if r.kind == kind) for kind in forms}
    cells_of = [(kind, epsilon) for epsilon in plan.epsilons for kind in forms]
    heads = [f"{names[kind]}, ε = {_epsilon(epsilon)}" for kind, epsilon in cells_of]
    noises = [f"noise, ε = {_epsilon(epsilon)}" for epsilon in plan.epsilons]
    columns = [
        "a step's examples",
        "sums of one",
        "passes",
        *noises,
        *heads,
        f"rates at ε = {', '.join(map(_epsilon, plan.epsilons))}",
    ]
    rows = [columns, ["---"] * len(columns)]
    for parts in dict.fromkeys(row.parts for row in BATCH_ROWS):
        of = {row.kind: row for row in BATCH_ROWS if row.parts == parts}
        first = next(iter(of.values()))
        found = [made[of[kind].name, epsilon] for kind, epsilon in cells_of]
        if not any(cell.tests() for cell in found):
            continue
        rows.append(
            [
                first.batch,
                f"{participations(steps, max(parts, 1))} of {steps}",
                f"{first.passes(steps):g}",
                *(_noise(made[first.name, epsilon]) for epsilon in plan.epsilons),
                *(_loss(cell, len(plan.seeds))[0] for cell in found),
                ", ".join(_rate(cell) for cell in found),
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", _batch_notes(plan, results)]) + "\n"


def _epsilon(epsilon: float | None) -> str:
    return "∞" if epsilon is None else f"{epsilon:g}"


def _noise(cell: Cell) -> str:
    return next((f"{run['noise_multiplier']:.2f}" for run in cell.tests()), "–")


def _batch_notes(plan: Plan, results: Results) -> str:
    found = [
        key
        for key, run in results.all().items()
        if (key.clip, key.epsilon in plan.epsilons) == (plan.clip, True) and "refused" not in run
    ]
    return (
        f"Clip {plan.clip:g}; rates are per clip. ± is the standard deviation over "
        f"{len(plan.seeds)} seeds. {_tried(plan)} "
        f"{sum(key.phase == 'tune' for key in found)} runs to choose rates, "
        f"{sum(key.phase == 'test' for key in found)} reported."
    )


def _tried(plan: Plan) -> str:
    tried = "Rates tried in every row"
    if plan.start is not None:
        tried = f"Rates, from {plan.start:g} to the neighbour as long as one is better"
    shown = " ".join(f"{rate:g}" for rate in plan.rates)
    return f"{tried}: {shown}; * marks a choice at their edge."


def differences(plan: Plan, results: Results, against: str, rows_of: Sequence[Row] = ROWS) -> str:
    """Markdown: loss less that of the row ``against``, paired by seed; seeds that are better."""
    made = cells(plan, results, [row.name for row in rows_of])
    names = [_epsilon(epsilon) for epsilon in plan.epsilons]
    columns = [f"less {against}", *(f"ε = {name}" for name in names)]
    rows = [columns, ["---"] * len(columns)]
    for row in rows_of:
        texts = [_difference(made[row.name, e], made[against, e]) for e in plan.epsilons]
        rows.append([row.name, *texts])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def _difference(cell: Cell, other: Cell) -> str:
    pairs = zip(cell.tests(), other.tests(), strict=False)
    found = [loss_of(run) - loss_of(base) for run, base in pairs]
    if len(found) < 2:
        return ""
    better = sum(1 for value in found if value < 0)
    return (
        f"{statistics.mean(found):+.2f} ± {statistics.stdev(found):.2f} ({better} of {len(found)})"
    )


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
    found = {
        key: run
        for key, run in results.all().items()
        if key.epsilon in plan.epsilons and key.rate in plan.rates and "refused" not in run
    }
    loads = [run["load"] for run in found.values()]
    text = (
        f"± is the standard deviation over {len(plan.seeds)} seeds. {_tried(plan)} "
        f"{sum(1 for key in found if key.phase == 'tune')} runs to choose rates, "
        f"{sum(1 for key in found if key.phase == 'test')} reported."
    )
    if loads:
        text += (
            f" Device seconds are CPU time on a machine under a load of {min(loads):g} to "
            f"{max(loads):g}."
        )
    errors = [
        run["product_error"]
        for key, run in found.items()
        if key.phase == "test" and "product_error" in run
    ]
    if errors:
        text += (
            " Averaged factors of plain LoRA, in the last release, are off the mean of the "
            f"products by {100 * statistics.median(errors):.1f} % in the median run "
            f"and {100 * max(errors):.0f} % in the worst (Frobenius norm)."
        )
    return text


def write_report(
    plan: Plan, results: Results, references: Mapping[str, float], into: Path | None
) -> None:
    """Print the table; with ``into`` put it between its marks there, and the chart beside it.

    Raises:
        OutputError: ``into`` has no such marks, or the chart's place is taken.
    """
    made = table(plan, results, references)
    print(made)
    if into is None:
        return
    name = results.path.stem
    drawn = chart(plan, results, [row.name for row in ROWS], references).encode()
    _check_page(into, name)
    write_file(into.parent / f"quality-{name}.svg", drawn, is_chart)
    _put(into, name, made)


def write_batches(plan: Plan, results: Results, steps: int, into: Path | None) -> None:
    """Print the table of batches; with ``into`` put it between its marks there.

    Raises:
        OutputError: ``into`` has no such marks.
    """
    made = batch_table(plan, results, steps)
    print(made)
    if into is not None:
        _check_page(into, results.path.stem)
        _put(into, results.path.stem, made)


def _check_page(into: Path, name: str) -> None:
    begin, end = BEGIN.format(name), END.format(name)
    check_file(into, lambda page: _marked(page.read_text("utf-8"), begin, end))


def _put(into: Path, name: str, made: str) -> None:
    begin, end = BEGIN.format(name), END.format(name)
    head, _, rest = into.read_text("utf-8").partition(begin)
    _, _, tail = rest.partition(end)
    page = f"{head}{begin}\n{made}{end}{tail}"
    write_file(into, (page if page.endswith("\n") else page + "\n").encode(), lambda _: True)


def _marked(page: str, begin: str, end: str) -> bool:
    return begin in page and end in page.partition(begin)[2]
