"""The routes of the aggregator that a device uses, over what is in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web

from client_sdk.testing.cohorts import Cohort, Formation, Refused, Session
from secagg import http_api
from secagg.access_token import verify_access_token
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError

_BODY_BYTES_MAX = 64 << 20
_POLL_MAX_S = 60.0
_SESSION = "/v1/sessions/{session:[0-9a-f]{64}}"


class Routes:
    def __init__(self, formation: Formation, models: Path, clock: Callable[[], float]) -> None:
        self._formation = formation
        self._books = formation.books
        self._models = models
        self._clock = clock

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_BYTES_MAX, middlewares=[_problems])
        app.add_routes(
            [
                web.get("/v1/server", self._server),
                web.get("/v1/tasks/{task}/offer", self._offer),
                web.get("/v1/models/{digest:[0-9a-f]{64}}", self._model),
                web.post("/v1/adverts", self._advert),
                web.delete(_SESSION, self._withdraw),
                web.get(f"{_SESSION}/messages", self._mail),
                web.post(f"{_SESSION}/messages", self._message),
                web.get(f"{_SESSION}/vector", self._received),
                web.put(f"{_SESSION}/vector", self._chunk),
                web.get("/ledger/{path:.+}", self._ledger),
            ]
        )
        return app

    async def _server(self, _: web.Request) -> web.Response:
        books = self._books
        return _json(http_api.ServerInfo(task_key=books.task_key, ledger_verifier=books.verifier))

    async def _offer(self, request: web.Request) -> web.Response:
        identity = self._device(request)
        books, name = self._books, request.match_info["task"]
        if name != books.manifest.task:
            raise Refused(404, "not-found", f"There is no task {name!r} here.")
        after = int(request.query.get("after_version", -1))
        until = _until(request)
        if books.model.version <= after:
            self._formation.sit_out(identity)
        while books.model.version <= after and not self._formation.finished:
            if not await self._wait(until):
                break
        return _json(
            http_api.Offer(
                manifest=books.encoded,
                manifest_signature=books.signature,
                state="finished" if self._formation.finished else "open",
                releases=len(books.charges),
                model=books.model,
                now=self._clock(),
            )
        )

    async def _model(self, request: web.Request) -> web.StreamResponse:
        self._device(request)
        path = self._models / request.match_info["digest"]
        if not path.is_file():
            raise Refused(404, "not-found", "There is no such model here.")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})

    async def _advert(self, request: web.Request) -> web.Response:
        identity = self._device(request)
        session = self._formation.report_in(identity, await request.read())
        return _json(http_api.AdvertAccepted(session=session.id))

    async def _withdraw(self, request: web.Request) -> web.Response:
        self._formation.withdraw(self._session(request))
        return web.Response(status=204)

    async def _mail(self, request: web.Request) -> web.Response:
        session, after, until = self._session(request), int(request.query["after"]), _until(request)
        while len(session.mail) <= after and not self._formation.is_stale(session):
            if not await self._wait(until):
                break
        found = tuple(session.mail[after:])
        if not found and self._formation.is_stale(session):
            raise Refused(409, "session-stale", "This advert can no longer be in a cohort.")
        return _json(http_api.Mail(messages=found))

    async def _message(self, request: web.Request) -> web.Response:
        session = self._session(request)
        message = await request.read()
        self._cohort(session).receive(session.index, message)
        self._formation.consider()
        return web.Response(status=204)

    async def _received(self, request: web.Request) -> web.Response:
        return self._upload(self._session(request))

    async def _chunk(self, request: web.Request) -> web.Response:
        session = self._session(request)
        cohort = self._cohort(session)
        self._upload(session)  # refuses what was not announced
        offset = int(request.query["offset"])
        async for part in request.content.iter_any():  # what comes before it breaks is kept
            cohort.append(session.index, offset, part)
            offset += len(part)
        return self._upload(session)

    async def _ledger(self, request: web.Request) -> web.Response:
        found = self._books.ledger.get(request.match_info["path"])
        if found is None:
            raise Refused(404, "not-found", "The ledger has no such file.")
        return web.Response(body=found, content_type="application/octet-stream")

    def _device(self, request: web.Request) -> bytes:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        books = self._books
        try:
            identity = verify_access_token(
                token, books.task_key, (books.partner.key,), int(self._clock())
            )
        except RemoteProtocolError as error:
            raise Refused(401, error.reason, error.message) from error
        self._formation.seen(identity)
        return identity

    def _session(self, request: web.Request) -> Session:
        identity = self._device(request)
        session = self._formation.sessions.get(request.match_info["session"])
        if session is None:
            raise Refused(404, "not-found", "There is no such session here.")
        if session.identity != identity:
            raise Refused(403, "session-not-yours", "The session is another device's.")
        return session

    def _cohort(self, session: Session) -> Cohort:
        if session.cohort is None:
            raise Refused(409, "session-waiting", "The session is in no cohort yet.")
        if session.cohort.ended is not None:
            raise _ended()
        return session.cohort

    def _upload(self, session: Session) -> web.Response:
        cohort = session.cohort
        if cohort is None or session.index not in cohort.tickets:
            raise Refused(409, "vector-not-announced", "No vector was announced.")
        done = cohort.added(session.index)
        if cohort.ended is not None and not done:
            raise _ended()
        size = cohort.tickets[session.index].size_bytes
        have = size if done else len(cohort.received.get(session.index, b""))
        return _json(http_api.UploadState(received_bytes=have, complete=done))

    async def _wait(self, until: float) -> bool:
        """Wait for news; whether there was time left."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            return False
        await self._formation.news(left)
        return True


def _ended() -> Refused:
    return Refused(409, "cohort-ended", "The cohort has ended.")


def _until(request: web.Request) -> float:
    wait_s = min(float(request.query.get("wait_s", 0)), _POLL_MAX_S)
    return asyncio.get_running_loop().time() + wait_s


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


@web.middleware
async def _problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors as the service tells them."""
    try:
        return await handler(request)
    except ConnectionError:  # nobody is there any more who could hear
        return web.Response(status=400)
    except SecaggError as error:
        status = 422
        if isinstance(error, Refused):
            status = error.status
        elif isinstance(error, LocalProtocolError):
            status = 409
        problem = http_api.Problem(
            reason=error.reason, message=error.detail, remedy=error.remedy, status=status
        )
        return web.Response(
            status=status,
            body=msgspec.json.encode(problem),
            content_type=http_api.PROBLEM_TYPE,
        )
