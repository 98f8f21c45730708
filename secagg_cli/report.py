"""The privacy report as one self-contained page (or JSON), readable on a phone and offline.

The page holds no script and loads nothing. Every privacy line has a chart of its own: epsilons of
different units, adversaries or assumptions share no axis.
"""

from __future__ import annotations

import datetime
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from secagg_cli.output import CommandError

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dp.report import ReportData, TaskReport

_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#999999"  # distinguishable to the colour-blind
_WIDTH_IN, _HEIGHT_IN = 5.2, 2.4
_CHART_RELEASES_MAX = 400  # bars beyond that are drawn as lines


def write_report(path: Path, data: ReportData, run: Mapping[str, Any] | None = None) -> None:
    """Write the report; ``.json`` gives the data, anything else the page.

    Args:
        run: what a ledger cannot know: the result of ``secagg demo``.

    Raises:
        CommandError: ``report-dependency`` without jinja2 or matplotlib.
    """
    if path.suffix == ".json":
        path.write_bytes(msgspec.json.format(msgspec.json.encode(data)) + b"\n")
        return
    path.write_text(render(data, run), "utf-8")


def render(data: ReportData, run: Mapping[str, Any] | None = None) -> str:
    """The page's HTML."""
    try:
        import jinja2
        import matplotlib  # noqa: F401  fails here rather than in the middle of the page
    except ImportError as error:
        raise CommandError(
            "report-dependency",
            f"The page needs {error.name}.",
            remedy="pip install 'secagg[server]', or write the report as .json.",
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["time"] = _time
    environment.filters["epsilon"] = _epsilon
    return environment.get_template("report.html").render(
        data=data,
        wrong={problem.leaf for problem in data.problems if problem.leaf is not None},
        run=run,
        cost_charts={task.task: cost_charts(task) for task in data.tasks},
        cohort_charts={task.task: cohort_chart(task) for task in data.tasks},
    )


def cost_charts(task: TaskReport) -> list[Markup]:
    """One chart for every privacy line: what it had cost after each release; none before one."""
    if not task.releases:
        return []
    limit = task.budget.max_epsilon
    charts = []
    for number, line in enumerate(task.lines):
        figure, axes = _figure(len(task.releases))
        spent = [release.epsilons[number] for release in task.releases]
        steps = range(1, len(spent) + 1)
        axes.plot(steps, spent, color=_BLUE, marker="o" if len(spent) < 40 else None)
        if limit is not None and not line.amplified and limit < 4 * max(spent):
            axes.axhline(limit, color=_ORANGE, linestyle="--")
            axes.annotate("budget", (0.01, limit), xycoords=("axes fraction", "data"), va="bottom")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("release")
        axes.set_ylabel(f"epsilon at delta {line.delta:g}")
        charts.append(_svg(figure, f"cost-{task.task}-{number}"))
    return charts


def cohort_chart(task: TaskReport) -> Markup | None:
    """Survivors and drop-outs of every cohort, stacked; None before the first."""
    if not task.releases:
        return None
    figure, axes = _figure(len(task.releases))
    numbers = [release.number for release in task.releases]
    survivors = [release.survivors for release in task.releases]
    dropped = [release.dropped for release in task.releases]
    if len(numbers) <= _CHART_RELEASES_MAX:
        axes.bar(numbers, survivors, color=_BLUE, label="in the sum")
        axes.bar(numbers, dropped, bottom=survivors, color=_ORANGE, label="dropped")
    else:
        axes.plot(numbers, survivors, color=_BLUE, label="in the sum")
        axes.plot(numbers, dropped, color=_ORANGE, label="dropped")
    _whole_numbers(axes)
    axes.set_xlabel("release")
    axes.set_ylabel("devices")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2, frameon=False)
    return _svg(figure, f"cohorts-{task.task}")


def _figure(releases: int) -> tuple[Figure, Axes]:
    """Axes over the releases 1..``releases``; a few of them do not fill the width."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GREY, alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlim(0.4, max(releases, 4) + 0.6)
    _whole_numbers(axes, "x")
    return figure, axes


def _whole_numbers(axes: Axes, which: str = "both") -> None:
    from matplotlib.ticker import MaxNLocator

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _svg(figure: Figure, salt: str) -> Markup:
    """The drawing as an ``<svg>`` element; the same data give the same bytes."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # noqa: S704  matplotlib escapes its texts


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _epsilon(value: float | None) -> str:
    if value is not None and math.isinf(value):
        return "beyond what is vouched for"
    return "none" if value is None else f"{value:.3f}"
