"""The two web applications of a replica: the public one, and the operator's port."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from aggregator.audit import Status
from aggregator.errors import Kind, Refusal
from aggregator.http.audit import audited
from aggregator.http.dashboard.sites import demand_known_host
from aggregator.http.problems import Handler, problems
from aggregator.http.requests import identified, note_begun, show_id, status_after
from aggregator.http.routes import admin, devices, ledger, openapi, operator, sessions
from aggregator.service import Service
from aggregator.settings.options import Settings

_FORM_BYTES = 16 << 10
SERVICE = web.AppKey("service", Service)


def build_app(settings: Settings, clock: Callable[[], float] = time.time) -> web.Application:
    """The public application; it starts and stops its :class:`Service` with itself."""
    service = Service(settings, clock)
    app = web.Application(
        middlewares=[
            identified(settings.behind_proxy),
            _measured(service),
            audited(service),
            problems(service.core.metrics),
            service.intake.middleware,
        ]
    )
    app[SERVICE] = service
    for module in (devices, sessions, ledger, operator, openapi):
        app.add_routes(module.routes(service))
    app.cleanup_ctx.append(_run)
    app.on_response_prepare.extend((show_id, note_begun))
    app.on_shutdown.append(_let_go)
    return app


def build_admin_app(service: Service, inner: Sequence[Middleware] = ()) -> web.Application:
    """Dashboard, health and metrics; for a port that only the operator reaches. ``inner``:
    middlewares next to the pages."""
    outer = [identified(False), problems(service.core.metrics)]
    if service.core.settings.admin_client_ca is not None:
        outer.append(_certified)
    app = web.Application(
        middlewares=[*outer, _named(service.core.settings), *inner, _started(service)],
        client_max_size=_FORM_BYTES,
    )
    app.on_response_prepare.extend((show_id, note_begun))
    app.add_routes(admin.routes(service))
    return app


def _is_page(request: web.Request) -> bool:
    """Health and metrics are for programs, and are answered at any time."""
    resource = request.match_info.route.resource
    return resource is None or resource.canonical not in ("/healthz", "/readyz", "/metrics")


def _named(settings: Settings) -> Middleware:
    @web.middleware
    async def named(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_page(request):
            demand_known_host(request, settings)
        return await handler(request)

    return named


def _started(service: Service) -> Middleware:
    @web.middleware
    async def started(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _is_page(request):
            service.demand_started()
        return await handler(request)

    return started


@web.middleware
async def _certified(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Health is for whoever asks; all else for callers whose certificate TLS has verified."""
    resource = request.match_info.route.resource
    free = resource is not None and resource.canonical in ("/healthz", "/readyz")
    shown = request.transport is not None and request.transport.get_extra_info("peercert")
    if not free and not shown:
        raise Refusal(
            Kind.FORBIDDEN,
            "client-certificate-missing",
            "This page is for callers with a certificate.",
            remedy="Show one of an authority that the setting admin_client_ca names.",
        )
    return await handler(request)


async def _run(app: web.Application) -> AsyncIterator[None]:
    await app[SERVICE].start()
    yield
    await app[SERVICE].close()


async def _let_go(app: web.Application) -> None:
    app[SERVICE].end_waiting()


def _measured(service: Service) -> Middleware:
    metrics = service.core.metrics

    @web.middleware
    async def measured(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        resource = request.match_info.route.resource
        route = f"{request.method} {resource.canonical}" if resource else "unknown"
        try:
            response = await handler(request)
        except BaseException as error:  # the caller left, or the service is being stopped
            tell(route, status_after(error), started)
            raise
        tell(route, response.status, started)
        return response

    def tell(route: str, status: Status, started: float) -> None:
        metrics.requests.labels(route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(time.monotonic() - started)

    return measured
