"""What an operator does from a page: pause, resume and close a task, after a page that asks.

The port asks for no token to read. To act, the operator's token comes with the form itself: there
is no session and no cookie, so no other site can act with what a browser keeps. A form that another
site sends is refused before its token is looked at, so that no visitor's browser guesses tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from aiohttp import web
from aiohttp.http import HttpProcessingError

from aggregator.audit import BROKEN_OFF, Action, Status
from aggregator.errors import Kind, Refusal
from aggregator.http.audit import reason_of
from aggregator.http.dashboard.sites import demand_form_from_here
from aggregator.http.problems import STATUS, answered
from aggregator.http.requests import id_of
from aggregator.intake.callers import REMOTE
from aggregator.service import Service
from aggregator.tasks import Task
from aggregator.views import TaskState, TaskView

Render = Callable[..., web.Response]
_FORM = web.RequestKey[Mapping[str, str] | Refusal]("form")
_FORM_S = 10.0  # for a form to come


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


async def take_form(request: web.Request) -> None:
    """Read the form where its connection is; what is wrong with it is told where it is used."""
    if _FORM not in request:
        request[_FORM] = await _form(request)


async def _form(request: web.Request) -> Mapping[str, str] | Refusal:
    try:
        async with asyncio.timeout(_FORM_S):
            form = await request.post()
    except TimeoutError:
        return Refusal(Kind.TOO_SLOW, "form-late", "The form did not come in time.")
    except web.HTTPRequestEntityTooLarge:
        return Refusal(Kind.TOO_LARGE, "body-too-large", "The form is larger than any of a page.")
    except (ValueError, LookupError, RuntimeError, HttpProcessingError):
        return Refusal(
            Kind.MALFORMED,
            "form-malformed",
            "The form cannot be read.",
            remedy="Open the task's page here and use its button.",
        )
    return {name: value for name, value in form.items() if isinstance(value, str)}


def routes(service: Service, render: Render) -> list[web.RouteDef]:
    async def confirm(request: web.Request) -> web.Response:
        task = await service.tasks.shown(request.match_info["task"])
        return page(request, task)

    async def act(request: web.Request) -> web.StreamResponse:
        return await service.driver.to_its_end(told(request), "act")

    async def told(request: web.Request) -> web.StreamResponse:
        """Act, and tell the audit log, whatever comes of it."""
        token, refused = "", None

        async def do(request: web.Request) -> web.Response:
            nonlocal token, refused
            demand_form_from_here(request)
            await take_form(request)
            if isinstance(form := request[_FORM], Refusal):
                raise form
            token = form.get("token", "")
            task = await service.tasks.shown(request.match_info["task"])
            try:
                service.callers.demand_operator_token(token, request[REMOTE])
                service.demand_started()
                await ACTS[request.match_info["act"]].do(service, task)
            except Refusal as error:
                refused = error.reason
                return page(request, task, error, STATUS[error.kind])
            service.wakeups.consider(task.name)
            return web.Response(status=303, headers={"Location": f"/tasks/{task.name}"})

        status: Status = BROKEN_OFF
        reason: str | None = None
        try:
            response = await answered(service.core.metrics, request, do)
            status, reason = response.status, refused or reason_of(response)
            return response
        finally:
            tell(request, token, status, reason)

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

    def tell(request: web.Request, token: str, status: Status, reason: str | None) -> None:
        service.audit.write(
            Action(
                who=service.core.pseudonyms.operator(token) if token else None,
                action=f"POST /tasks/{{task}}/{request.match_info['act']}",
                subject={"task": request.match_info["task"][:100]},
                remote=request[REMOTE],
                request_id=id_of(request) or "",
                status=status,
                reason=reason,
            )
        )

    path = f"/tasks/{{task}}/{{act:{'|'.join(ACTS)}}}"
    return [web.get(path, confirm), web.post(path, act)]


def _is_local(remote: str | None) -> bool:
    return remote in ("127.0.0.1", "::1")
