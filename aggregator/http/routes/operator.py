"""The operator's routes, behind the operator's token: partners, tasks, and what they released."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from aggregator import views
from aggregator.cohorts.aborting import abort
from aggregator.cohorts.drop_outs import not_dealing
from aggregator.http.audit import about
from aggregator.http.responses import model_file
from aggregator.intake import bodies, specs
from aggregator.intake.open_requests import OPERATOR
from aggregator.overview import task_view
from aggregator.service import Service
from aggregator.store import reads
from aggregator.tasks import Task
from dp.contracts import warnings
from dp.planning.figures import figures_of
from dp.planning.task import planned_costs

_SMALL_CAP = 4_096
_SPEC_CAP = 2 << 20  # a spec lists the adapter's tensors
_REFERENCE = 16  # digits of a ban's name in the ledger, which people go by


def routes(service: Service) -> list[web.RouteDef]:
    async def add_partner(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        async with service.intake.body(request, OPERATOR, _SMALL_CAP) as sent:
            body = bodies.parse_json(sent, views.PartnerBody)
        about(request, partner=body.key.hex()[:64], name=body.name[:100])
        await service.partners.add(body.name, body.key)
        return bodies.json_response(views.PartnerAdded(name=body.name, key=body.key))

    async def list_partners(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        return bodies.json_response(views.PartnerList(partners=await service.partners.all()))

    async def create(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        async with service.intake.body(request, OPERATOR, _SPEC_CAP) as sent:
            spec = specs.parse_spec(sent)
        about(request, task=spec.task[:100])
        with specs.all_told(sent):
            task = await service.tasks.create(spec)
        service.wakeups.consider(task.name)
        view = await task_view(service.core, task, service.driver.live)
        rules = task.manifest.cohort
        planned = await asyncio.to_thread(planned_costs, task.manifest)
        return bodies.json_response(
            views.TaskCreated(
                **msgspec.structs.asdict(view),
                warnings=tuple(warnings(task.manifest)),
                planned=planned,
                drop_outs_max=rules.size_max - rules.survivors_min,
                corrupt_max=rules.corrupt_max,
                figures=figures_of(task.manifest),
            )
        )

    async def plan(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        async with service.intake.body(request, OPERATOR, _SPEC_CAP) as sent:
            spec = specs.parse_spec(sent)
        about(request, task=spec.task[:100])
        with specs.all_told(sent):
            manifest = await service.tasks.plan(spec)
        return bodies.json_response(
            views.TaskPlanned(
                task=manifest.task,
                algorithm=manifest.algorithm,
                releases_max=manifest.budget.releases_max,
                max_epsilon=manifest.budget.max_epsilon,
                delta=manifest.budget.delta,
                warnings=tuple(warnings(manifest)),
                planned=await asyncio.to_thread(planned_costs, manifest),
                figures=figures_of(manifest),
            )
        )

    async def list_tasks(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        rows = await reads.task_rows(service.core.database)
        return bodies.json_response(views.TaskList(tasks=rows))

    async def show(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        return bodies.json_response(await view_of(request))

    async def view_of(request: web.Request) -> views.TaskView:
        task = await task_of(request)
        view = await task_view(service.core, task, service.driver.live)
        await service.ledger.publish()  # what the view shows is in the folder
        return view

    async def pause(request: web.Request) -> web.Response:
        return await switch(request, "paused")

    async def resume(request: web.Request) -> web.Response:
        return await switch(request, "open")

    async def switch(request: web.Request, state: views.TaskState) -> web.Response:
        service.callers.demand_operator(request)
        task = await task_of(request)
        await service.tasks.switch(task, state)
        service.wakeups.consider(task.name)
        return bodies.json_response(await view_of(request))

    async def close(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        await service.tasks.close(await task_of(request))
        return bodies.json_response(await view_of(request))

    async def delete(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        task = await task_of(request)
        await service.tasks.delete(task)
        return bodies.json_response(views.TaskDeleted(task=task.name))

    async def abort_cohort(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        task = await task_of(request)
        done = await abort(service.core, service.driver, task)
        about(request, cohort=done.cohort, charge=done.charge)
        return bodies.json_response(done)

    async def task_of(request: web.Request) -> Task:
        return await service.tasks.shown(request.match_info["task"])

    async def rotate_token(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        async with service.intake.body(request, OPERATOR, _SMALL_CAP) as sent:
            body = bodies.parse_json(sent, views.TokenBody)
        old_until = await service.tokens.rotate(body.digest, body.overlap_s)
        return bodies.json_response(views.TokenRotated(old_until=old_until))

    async def model(request: web.Request) -> web.StreamResponse:
        service.callers.demand_operator(request)
        view = await view_of(request)
        return await model_file(service, request, view.model_digest, to_the_end=True)

    async def list_devices(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        membership = service.membership
        never = [
            views.NeverDealsView(
                device=identity,
                cohorts=cohorts,
                log_name=service.core.pseudonyms.device(bytes.fromhex(identity)),
            )
            for identity, cohorts in (await not_dealing(service.core)).items()
        ]
        return bodies.json_response(
            views.DeviceList(
                bans=await membership.bans(),
                strikes=await membership.strikes(),
                never_deal=tuple(never),
            )
        )

    async def ban(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        async with service.intake.body(request, OPERATOR, _SMALL_CAP) as sent:
            body = bodies.parse_json(sent, views.BanBody)
        made = await service.membership.ban(key_of(request), body.note)
        about(request, reference=made.handle[:_REFERENCE])
        return bodies.json_response(made)

    async def unban(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        handle = await service.membership.unban(key_of(request))
        about(request, reference=handle.hex()[:_REFERENCE])
        for row in await reads.task_rows(service.core.database):
            service.wakeups.consider(row.task)
        return web.Response(status=204)

    async def evidence(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        data = await service.membership.evidence(key_of(request))
        ban = await service.membership.show(key_of(request))
        about(request, reference=ban.handle[:_REFERENCE])
        return web.Response(body=data, content_type="application/octet-stream")

    async def remove_partner(request: web.Request) -> web.Response:
        service.callers.demand_operator(request)
        concerned = await service.partners.remove(key_of(request))
        return bodies.json_response(views.PartnerRemoved(tasks=tuple(concerned)))

    def key_of(request: web.Request) -> bytes:
        return bytes.fromhex(request.match_info["key"])

    base = "/v1/operator"
    named = "{key:[0-9a-f]{64}}"
    return [
        web.get(f"{base}/devices", list_devices),
        web.post(f"{base}/devices/{named}/ban", ban),
        web.post(f"{base}/devices/{named}/unban", unban),
        web.get(f"{base}/devices/{named}/evidence", evidence),
        web.post(f"{base}/partners/{named}/remove", remove_partner),
        web.post(f"{base}/partners", add_partner),
        web.get(f"{base}/partners", list_partners),
        web.post(f"{base}/tasks", create),
        web.get(f"{base}/tasks", list_tasks),
        web.get(f"{base}/tasks/{{task}}", show),
        web.post(f"{base}/tasks/{{task}}/pause", pause),
        web.post(f"{base}/tasks/{{task}}/resume", resume),
        web.post(f"{base}/tasks/{{task}}/close", close),
        web.post(f"{base}/tasks/{{task}}/delete", delete),
        web.post(f"{base}/tasks/{{task}}/cohort/abort", abort_cohort),
        web.post(f"{base}/plans", plan),
        web.post(f"{base}/token", rotate_token),
        web.get(f"{base}/tasks/{{task}}/model", model),
    ]
