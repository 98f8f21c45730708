"""What an operator does from a page: pause, resume and close a task, after a page that asks.

The port asks for no token to read. To act, the operator's token comes with the form itself: there
is no session and no cookie, so no other site can act with what a browser keeps. A form that another
site sends is refused before its token is looked at, so that no visitor's browser guesses tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from aggregator.audit import Action
from aggregator.errors import Kind, Refusal
from aggregator.http.problems import STATUS
from aggregator.http.requests import id_of
from aggregator.intake.callers import REMOTE
from aggregator.service import Service
from aggregator.tasks import Task
from aggregator.views import TaskState, TaskView
from secagg.errors import SecaggError

Render = Callable[..., web.Response]


class Act(NamedTuple):
    """``says``: what comes of it. ``do``: raises a ``Refusal`` where it cannot be done."""

    button: str
    says: str
    do: Callable[[Service, Task], Awaitable[None]]


async def _pause(service: Service, task: Task) -> None:
    await service.tasks.switch(task, "paused")


async def _resume(service: Service, task: Task) -> None:
    await service.tasks.switch(task, "open")


async def _close(service: Service, task: Task) -> None:
    await service.tasks.close(task)


ACTS = {
    "pause": Act(
        "Pause",
        "No further cohort is formed. One that is open goes on to its end. Devices that wait go on "
        "waiting. The pause is recorded in the public ledger, and costs nothing of the budget.",
        _pause,
    ),
    "resume": Act(
        "Resume",
        "Cohorts are formed again as soon as enough devices wait, and spend the budget. "
        "That is recorded in the public ledger.",
        _resume,
    ),
    "close": Act(
        "Close",
        "No further cohort is formed, for good: a closed task is not opened again. One that is "
        "open goes on to its end. What is left of the budget is not spent. Devices are told, and "
        "the public ledger tells it. The last model can still be exported, and a new task can "
        "start from it.",
        _close,
    ),
}
_OFFERED: dict[TaskState, tuple[str, ...]] = {
    "open": ("pause", "close"),
    "paused": ("resume", "close"),
}


def offered(task: TaskView) -> tuple[str, ...]:
    """Acts that can be done as the task is."""
    return () if task.closed_at is not None else _OFFERED.get(task.state, ())


def routes(service: Service, render: Render) -> list[web.RouteDef]:
    async def confirm(request: web.Request) -> web.Response:
        task = await service.tasks.shown(request.match_info["task"])
        return page(request, task)

    async def act(request: web.Request) -> web.Response:
        task = await service.tasks.shown(request.match_info["task"])
        try:
            demand_same_site(request)
            form = await request.post()
            token = str(form.get("token", ""))
        except SecaggError as error:
            tell(request, task, "", 403, error.reason)
            raise
        try:
            service.callers.demand_operator_token(token, request[REMOTE])
            await ACTS[request.match_info["act"]].do(service, task)
        except Refusal as error:
            status = STATUS[error.kind]
            tell(request, task, token, status, error.reason)
            return page(request, task, error, status)
        service.wakeups.consider(task.name)
        tell(request, task, token, 303, None)
        raise web.HTTPSeeOther(f"/tasks/{task.name}")

    def page(
        request: web.Request, task: Task, error: Refusal | None = None, status: int = 200
    ) -> web.Response:
        name = request.match_info["act"]
        return render(
            "confirm.html",
            status=status,
            task=task.name,
            act=ACTS[name],
            name=name,
            error=error,
            readable=request.scheme == "http" and not _is_local(request.remote),
        )

    def tell(request: web.Request, task: Task, token: str, status: int, reason: str | None) -> None:
        service.audit.write(
            Action(
                who=service.core.pseudonyms.operator(token) if token else None,
                action=f"POST /tasks/{{task}}/{request.match_info['act']}",
                subject={"task": task.name},
                remote=request[REMOTE],
                request_id=id_of(request) or "",
                status=status,
                reason=reason,
            )
        )

    path = f"/tasks/{{task}}/{{act:{'|'.join(ACTS)}}}"
    return [web.get(path, confirm), web.post(path, act)]


def demand_same_site(request: web.Request) -> None:
    """
    Raises:
        Refusal: ``form-of-another-site``.
    """
    from_ = request.headers.get("Origin")
    fetched = request.headers.get("Sec-Fetch-Site", "same-origin")
    if fetched == "same-origin" and (from_ is None or urlsplit(from_).netloc == request.host):
        return
    raise Refusal(
        Kind.FORBIDDEN,
        "form-of-another-site",
        "This form was sent by a page of another site.",
        expected=request.host,
        found=from_ or fetched,
        remedy="Open the task's page here and use its button.",
    )


def _is_local(remote: str | None) -> bool:
    return remote in ("127.0.0.1", "::1")
