"""The dashboard's routes. Only on the operator's port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from aggregator.http.dashboard import acts, home, people, records, task
from aggregator.http.dashboard.forecast import Plans
from aggregator.http.dashboard.live import Regions, Streams
from aggregator.http.dashboard.render import Page, Renderer, file_routes
from aggregator.service import Service

LIVE = "/live"  # before the path of the page that a stream keeps up to date
Values = Callable[[web.Request], Awaitable[Mapping[str, Any]]]


def routes(service: Service) -> list[web.RouteDef]:
    renderer, plans, streams = Renderer(), Plans(), Streams(service)

    def kept(path: str, page: Page, title: str, values: Values) -> list[web.RouteDef]:
        """A page, and the stream of what changes on it."""

        async def show(request: web.Request) -> web.Response:
            said = title.format(**request.match_info)
            return renderer.page(page, said, f"{LIVE}{request.path}", await values(request))

        async def stream(request: web.Request) -> web.StreamResponse:
            async def compute() -> Regions:
                return renderer.regions(page, await values(request))

            return await streams.serve(request, compute)

        return [web.get(path, show), web.get(f"{LIVE}{path}", stream)]

    def still(path: str, template: str, values: Values) -> web.RouteDef:
        async def show(request: web.Request) -> web.Response:
            return renderer.html(template, **await values(request))

        return web.get(path, show)

    async def overview(_: web.Request) -> Mapping[str, Any]:
        return await home.values(service)

    async def of_task(request: web.Request) -> Mapping[str, Any]:
        return await task.values(service, plans, request.match_info["task"])

    async def devices(_: web.Request) -> Mapping[str, Any]:
        return await people.values(service)

    async def ledger(_: web.Request) -> Mapping[str, Any]:
        return await records.values(service)

    async def older(request: web.Request) -> Mapping[str, Any]:
        return await records.values(service, int(request.match_info["before"]))

    async def record(request: web.Request) -> Mapping[str, Any]:
        return await records.record(service, int(request.match_info["leaf"]))

    async def manifest(request: web.Request) -> Mapping[str, Any]:
        return await task.manifest(service, request.match_info["task"])

    async def charges(request: web.Request) -> Mapping[str, Any]:
        before = int(request.match_info["before"])
        return await task.charges(service, request.match_info["task"], before)

    number = "[0-9]{1,15}"
    return [
        *kept("/", home.PAGE, "Overview", overview),
        *kept("/tasks/{task}", task.PAGE, "{task}", of_task),
        *kept("/devices", people.PAGE, "Partners and devices", devices),
        *kept("/ledger", records.PAGE, "Ledger", ledger),
        still(f"/ledger/before/{{before:{number}}}", "older_records.html", older),
        still(f"/ledger/{{leaf:{number}}}", "record.html", record),
        still("/tasks/{task}/manifest", "manifest.html", manifest),
        still(f"/tasks/{{task}}/charges/{{before:{number}}}", "older_charges.html", charges),
        *acts.routes(service, renderer.html),
        *file_routes(),
    ]
