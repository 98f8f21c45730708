"""The privacy report as one self-contained page (or JSON), readable on a phone and offline.

The page holds no script and loads nothing. Each privacy statement has its own chart: epsilons of
different units, adversaries or assumptions share no axis.
"""

from __future__ import annotations

import datetime
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from client_sdk.outputs import write_file
from dp.accounting.figures import delta_shown, shown_down, shown_up
from dp.ledger.forms import TIME_MAX_S
from secagg_cli.output import CommandError, UnusableArgument, visible

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dp.report import BudgetRow, ReleaseRow, ReportData, TaskReport
    from secagg_cli.audit.evaluations import Measured

_MARK = b'<meta name="generator" content="secagg">'  # of a page that was written here
_HEAD_BYTES = 1_024
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#999999"  # distinguishable to the colour-blind
_WIDTH_IN, _HEIGHT_IN = 5.2, 2.4
_CHART_RELEASES_MAX = 400  # bars beyond that are drawn as lines
_CHART_MARKS_MAX = 40
_DIGITS = 3  # after the point of an epsilon
_TIMES = ["%Y", "%b", "%d %b", "%H:%M", "%H:%M", "%H:%M:%S"]  # labels of years, months, ... seconds


def write_report(
    path: Path,
    data: ReportData,
    run: Mapping[str, Any] | None = None,
    evaluations: Sequence[Measured] = (),
) -> None:
    """Write the report; ``.json`` gives the data, anything else the page.

    Args:
        run: what a ledger cannot know: the result of ``secagg demo``.
        evaluations: what it cannot know either, by time.

    Raises:
        CommandError: ``report-dependency`` without jinja2 or matplotlib.
        OutputError: ``path`` is taken or cannot be written.
    """
    if path.suffix.lower() == ".json":
        content = msgspec.json.format(msgspec.json.encode(data)) + b"\n"
    else:
        content = render(data, run, evaluations).encode()
    write_file(path, content, is_report)


def demand_form(path: Path) -> None:
    """Return if the name of a report's place says what is written there, or it is a folder.

    Raises:
        UnusableArgument: ``report-form``.
    """
    if path.suffix.lower() not in (".html", ".htm", ".json") and not path.is_dir():
        raise UnusableArgument(
            "report-form",
            f"{path} does not say in which form the report is to be.",
            expected="a name that ends in .html or .json",
            found=path.suffix or "no ending",
        )


def is_report(path: Path) -> bool:
    """Whether an earlier report stands there, as page or as data."""
    content = path.read_bytes()
    if path.suffix.lower() != ".json":
        return _MARK in content[:_HEAD_BYTES]
    return {"origin", "verified", "tree_size", "tasks", "recompute"} <= set(json.loads(content))


def render(
    data: ReportData, run: Mapping[str, Any] | None = None, evaluations: Sequence[Measured] = ()
) -> str:
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
        finalize=_shown,
    )
    environment.filters["time"] = _time
    environment.filters["epsilon"] = _epsilon
    environment.filters["delta"] = delta_shown
    environment.filters["down"] = lambda value: shown_down(value, _DIGITS)
    environment.filters["interval"] = lambda ends: (
        f"{shown_down(ends[0], 2)} to {shown_up(ends[1], 2)}"
    )
    environment.filters["percent"] = _percent
    environment.filters["outcome"] = _outcome
    environment.filters["recorded"] = lambda count: "not recorded" if count is None else count
    return environment.get_template("report.html").render(
        data=data,
        wrong={problem.leaf for problem in data.problems if problem.leaf is not None},
        run=run,
        evaluations=evaluations,
        loss_chart=loss_chart(evaluations),
        charges=sum(len(task.releases) for task in data.tasks),
        stated=any(task.lines and task.releases for task in data.tasks),
        cost_charts={task.task: cost_charts(task) for task in data.tasks},
        cohort_charts={task.task: cohort_chart(task) for task in data.tasks},
    )


def cost_charts(task: TaskReport) -> list[Markup]:
    """One chart over time for every privacy statement, a step for each release; none before one."""
    if not task.releases:
        return []
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    limit = task.budget.max_epsilon
    start = min(task.created_at, task.releases[0].at)
    times: Any = [_moment(start), *(_moment(release.at) for release in task.releases)]
    charts = []
    for number, line in enumerate(task.lines):
        figure, axes = _figure()
        spent = [0.0, *(release.epsilons[number] for release in task.releases)]
        axes.step(times, spent, where="post", color=_BLUE)
        if len(spent) < _CHART_MARKS_MAX:
            axes.plot(times[1:], spent[1:], color=_BLUE, marker="o", linestyle="none")
        if limit is not None and not line.amplified and limit < 4 * max(spent):
            axes.axhline(limit, color=_ORANGE, linestyle="--")
            axes.annotate("budget", (0.01, limit), xycoords=("axes fraction", "data"), va="bottom")
        axes.set_ylim(bottom=0)
        axes.margins(y=0.15)
        locator = AutoDateLocator(minticks=2, maxticks=5, tz=datetime.UTC)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(
            ConciseDateFormatter(
                locator, tz=datetime.UTC, formats=_TIMES, zero_formats=["", *_TIMES[:-1]]
            )
        )
        axes.set_xlabel("time (UTC)")
        axes.set_ylabel(f"epsilon at delta {delta_shown(line.delta)}")
        charts.append(_svg(figure, f"cost-{task.task}-{number}"))
    return charts


def cohort_chart(task: TaskReport) -> Markup | None:
    """Survivors and drop-outs of every cohort, stacked, or who was charged without a sum; None
    before the first."""
    if not task.releases:
        return None
    figure, axes = _figure()
    axes.set_xlim(0.4, max(len(task.releases), 4) + 0.6)  # a few do not fill the width
    numbers = [release.number for release in task.releases]
    survivors = [release.survivors for release in task.releases]
    dropped = [release.dropped or 0 for release in task.releases]
    without = [
        release.cohort_size if release.outcome == "charged" else 0 for release in task.releases
    ]
    if len(numbers) <= _CHART_RELEASES_MAX:
        axes.bar(numbers, survivors, color=_BLUE, label="in the sum")
        axes.bar(numbers, dropped, bottom=survivors, color=_ORANGE, label="dropped")
        if any(without):
            axes.bar(numbers, without, color=_GREY, label="charged without a sum")
    else:
        axes.plot(numbers, survivors, color=_BLUE, label="in the sum")
        axes.plot(numbers, dropped, color=_ORANGE, label="dropped")
        if any(without):
            axes.plot(numbers, without, color=_GREY, label="charged without a sum")
    _whole_numbers(axes)
    axes.set_xlabel("release")
    axes.set_ylabel("devices")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=3, frameon=False)
    return _svg(figure, f"cohorts-{task.task}")


def loss_chart(evaluations: Sequence[Measured]) -> Markup | None:
    """Loss over time, a line for each task that evaluated; None without a loss."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    known = [(row.task, _moment(row.at), row.loss) for row in evaluations if row.loss is not None]
    if not known:
        return None
    figure, axes = _figure()
    for name in dict.fromkeys(task for task, _, _ in known):
        times: Any = [at for task, at, _ in known if task == name]
        axes.plot(times, [loss for task, _, loss in known if task == name], marker="o", label=name)
    axes.set_ylim(bottom=0)
    locator = AutoDateLocator(minticks=2, maxticks=5, tz=datetime.UTC)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=datetime.UTC))
    axes.set_xlabel("time (UTC)")
    axes.set_ylabel("loss, nats per token")
    axes.legend(frameon=False)
    return _svg(figure, "losses")


def _figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=_GREY, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _svg(figure: Figure, salt: str) -> Markup:
    """The drawing as an ``<svg>`` element; the same data give the same bytes."""
    import matplotlib
    from markupsafe import Markup

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue().replace("#000000", "currentColor")  # black on a dark page is nothing
    return Markup(text[text.index("<svg") :])  # noqa: S704  matplotlib escapes its texts


def _shown(value: object) -> object:
    """Texts of a ledger as they are, but for what would change how others are read."""
    from markupsafe import Markup

    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _moment(seconds: float) -> datetime.datetime:
    """Where a refused manifest names a time that no ledger may have, the nearest that one may."""
    return datetime.datetime.fromtimestamp(min(max(seconds, 0), TIME_MAX_S), datetime.UTC)


def _time(seconds: float) -> str:
    shown = _moment(seconds).strftime("%Y-%m-%d %H:%M UTC")
    return shown if 0 <= seconds <= TIME_MAX_S else f"second {seconds} of Unix time"


def _percent(budget: BudgetRow) -> int:
    """Share of the epsilon budget that is spent, 0 to 100, rounded up."""
    if budget.max_epsilon is None or budget.spent is None or budget.max_epsilon <= 0:
        return 0
    return math.ceil(100 * min(1.0, budget.spent / budget.max_epsilon))


def _outcome(release: ReleaseRow) -> str:
    """Of a charged cohort with its reason, and whose fault it was."""
    if release.outcome != "charged":
        return release.outcome
    if release.fault is None:
        return "charged, fault and cause not recorded"
    whose = "unknown" if release.fault == "unknown" else f"the {release.fault}"
    return f"charged: {release.cause}, fault: {whose}"


def _epsilon(value: float | None) -> str:
    return "none" if value is None else shown_up(value, _DIGITS)
