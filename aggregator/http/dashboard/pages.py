"""The dashboard: all tasks, and one task with its releases. Only on the operator's port."""

from __future__ import annotations

import datetime
from typing import Any

import jinja2
from aiohttp import web
from markupsafe import Markup

from aggregator.http.dashboard import attention
from aggregator.http.dashboard.charts import steps
from aggregator.http.dashboard.forecast import ends_at
from aggregator.overview import task_view
from aggregator.service import Service
from aggregator.store import reads
from aggregator.views import EndedCohort, ReleaseView, TaskView
from dp.accounting.figures import delta_shown, shown_up

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_HEADERS = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}


def _when(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("aggregator.http.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["when"] = _when
    made.filters["span"] = _span
    made.filters["epsilon"] = lambda value: "none" if value is None else shown_up(value)
    made.filters["delta"] = delta_shown
    return made


def routes(service: Service) -> list[web.RouteDef]:
    pages = environment()

    def render(name: str, **values: Any) -> web.Response:
        text = pages.get_template(name).render(**values)
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    async def index(_: web.Request) -> web.Response:
        core, live = service.core, service.driver.live
        views = []
        for row in await reads.task_rows(core.database):
            views.append(await task_view(core, await service.tasks.get(row.task), live))
        witnesses = service.ledger.witnesses(await service.ledger.size())
        return render(
            "tasks.html",
            tasks=views,
            partners=len(service.partners.keys),
            witnesses=witnesses,
            attention=attention.of_all(views, witnesses),
            now=core.clock(),
        )

    async def show(request: web.Request) -> web.Response:
        task = await service.tasks.get(request.match_info["task"])
        view = await task_view(service.core, task, service.driver.live)
        return render(
            "task.html",
            task=view,
            charts=_charts(view),
            history=_history(view),
            attention=attention.of_task(view),
            ends_at=ends_at(view),
            now=service.core.clock(),
        )

    return [web.get("/", index), web.get("/tasks/{task}", show)]


def _charts(task: TaskView) -> list[tuple[str, Markup]]:
    """(title, SVG) of each chart that has something to show."""
    done = task.releases
    spent = [charge.epsilon for charge in done]
    norms = [charge.sum_norm for charge in done]
    sizes = [float(charge.survivors) if charge.outcome == "released" else None for charge in done]
    every = (
        ("Epsilon spent", steps("Epsilon spent", spent, task.max_epsilon, shown_up, "epsilon")),
        ("Norm of the released sum", steps("Norm of the released sum", norms, unit="L2 norm")),
        ("Devices in the sum", steps("Devices in the sum", sizes, unit="devices")),
    )
    return [(title, Markup(chart)) for title, chart in every if chart]  # noqa: S704  numbers only


def _history(task: TaskView) -> list[ReleaseView | EndedCohort]:
    """Cohorts that ended, newest first: all that were charged, the newest of the others."""
    cohorts: list[ReleaseView | EndedCohort] = [*task.releases, *task.ended_free]
    return sorted(cohorts, key=_ended_at, reverse=True)


def _ended_at(cohort: ReleaseView | EndedCohort) -> float:
    at = cohort.released_at if isinstance(cohort, ReleaseView) else cohort.ended_at
    return at or 0.0


def _span(seconds: float) -> str:
    """A length of time in its largest unit: 40 s, 12 min, 3 h, 2 d."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
