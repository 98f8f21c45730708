"""What a device asks before it is in a cohort: keys, the offer, models, and the report-in."""

from __future__ import annotations

import asyncio

from aiohttp import web

from aggregator import logs
from aggregator.cohorts import formation
from aggregator.cohorts.standing import refuse_barred
from aggregator.errors import Kind, Refusal
from aggregator.http.responses import delta_file, model_file, wait
from aggregator.intake import bodies
from aggregator.service import Service
from aggregator.store import reads
from secagg import http_api, limits

_ADVERT_CAP = limits.ADVERT_BYTES_MAX + 512  # the frame and its signature


def routes(service: Service) -> list[web.RouteDef]:
    core, settings = service.core, service.core.settings

    async def server(_: web.Request) -> web.Response:
        return bodies.json_response(
            http_api.ServerInfo(
                task_key=core.keys.task_public, ledger_verifier=service.ledger.verifier
            )
        )

    async def refuse(request: web.Request) -> None:
        """Whoever may not take part gets no model either."""
        caller = await service.callers.certificate(request)
        await refuse_barred(core, caller.identity_key, caller.partner_key)

    async def offer(request: web.Request) -> web.Response:
        await refuse(request)
        task = await service.tasks.get(request.match_info["task"])
        after = request.query.get("after_version")
        after_version = None if after is None else bodies.query_int(request, "after_version", 0)
        wait_s = bodies.query_number(request, "wait_s", 0, settings.long_poll_max_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            with core.signals.listen(f"task:{task.name}") as changed:
                now = await reads.current(core.database, task.name)
                left = until - loop.time()
                new = after_version is None or now.version > after_version or now.state != "open"
                if new or left <= 0 or not service.ready:
                    break
                await wait(changed, left)
        return bodies.json_response(
            http_api.Offer(
                manifest=task.encoded,
                manifest_signature=task.signature,
                state=now.state,
                releases=now.charges,
                model=http_api.ModelVersion(
                    version=now.version,
                    digest=bytes.fromhex(now.digest),
                    size_bytes=now.size_bytes,
                    opened_at=now.opened_at,
                    leaf_index=now.leaf_index,
                ),
                now=core.clock(),
                revocations=await service.partners.revocations(task.manifest.partner_keys),
            )
        )

    async def model(request: web.Request) -> web.StreamResponse:
        await refuse(request)
        return await model_file(service, request, request.match_info["digest"])

    async def delta(request: web.Request) -> web.StreamResponse:
        await refuse(request)
        return await delta_file(
            service, request, request.match_info["digest"], request.match_info["held"]
        )

    async def advert(request: web.Request) -> web.Response:
        identity = await service.callers.device(request)
        async with service.intake.body(request, identity, _ADVERT_CAP) as signed:
            name = formation.task_named_in(signed)
            task = await service.tasks.get(name)
            logs.carry(task=task.name)
            session = await formation.report_in(core, task, identity, signed)
        service.wakeups.consider(task.name)
        return bodies.json_response(http_api.AdvertAccepted(session=session))

    async def revoke(request: web.Request) -> web.Response:
        """A partner comes under a token of its own key, as a device that it certified."""
        partner = await service.callers.device(request)
        if partner not in service.partners.keys:
            raise Refusal(
                Kind.FORBIDDEN, "revocations-not-yours", "Only a partner revokes certificates."
            )
        async with service.intake.body(request, partner, limits.REVOCATION_BYTES_MAX) as signed:
            shown = await service.partners.revoke(partner, signed)
        return bodies.json_response(shown)

    async def revocation_list(request: web.Request) -> web.Response:
        await service.callers.device(request)
        data = await service.partners.revocation_list(request.match_info["digest"])
        return web.Response(body=data, content_type="application/octet-stream")

    return [
        web.get("/v1/server", server),
        web.post("/v1/revocations", revoke),
        web.get("/v1/revocations/{digest:[0-9a-f]{64}}", revocation_list),
        web.get("/v1/tasks/{task}/offer", offer),
        web.get("/v1/models/{digest:[0-9a-f]{64}}", model),
        web.get("/v1/deltas/{digest:[0-9a-f]{64}}/{held:[0-9a-f]{64}}", delta, allow_head=False),
        web.post("/v1/adverts", advert),
    ]
