"""The dashboard: all tasks, and one task with its releases. Only on the operator's port."""

from __future__ import annotations

import datetime
from typing import Any

import jinja2
from aiohttp import web
from markupsafe import Markup

from aggregator.http.dashboard.charts import steps
from aggregator.overview import task_view
from aggregator.service import Service
from aggregator.store import reads
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
    made.filters["epsilon"] = lambda value: "none" if value is None else shown_up(value)
    made.filters["delta"] = delta_shown
    return made


def routes(service: Service) -> list[web.RouteDef]:
    pages = environment()

    def render(name: str, **values: Any) -> web.Response:
        text = pages.get_template(name).render(**values)
        return web.Response(text=text, content_type="text/html", headers=_HEADERS)

    async def index(_: web.Request) -> web.Response:
        views = []
        for row in await reads.task_rows(service.core.database):
            views.append(await task_view(service.core, await service.tasks.get(row.task)))
        return render("tasks.html", tasks=views, partners=len(service.partners.keys))

    async def show(request: web.Request) -> web.Response:
        task = await service.tasks.get(request.match_info["task"])
        view = await task_view(service.core, task)
        done = view.releases
        spent = [release.epsilon for release in done]
        epsilon = steps("Epsilon spent", spent, view.max_epsilon, shown_up)
        norm = steps("Norm of the released sum", [release.sum_norm for release in done])
        sizes = steps("Devices in the sum", [float(release.survivors) for release in done])
        charts = [Markup(chart) for chart in (epsilon, norm, sizes)]  # noqa: S704  numbers only
        return render("task.html", task=view, charts=charts)

    return [web.get("/", index), web.get("/tasks/{task}", show)]
