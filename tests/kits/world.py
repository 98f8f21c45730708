"""A real aggregator in this process on loopback, with devices that speak HTTP to it.

The service runs on SQLite in a temporary folder; a restart is a stop and a start of the whole
application on the same port and folder. Between it and the devices sits a gate where a test can
change what a server says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import aiohttp.test_utils
import msgspec
import numpy as np
import safetensors.numpy
from aiohttp import web
from msgspec.structs import replace

from aggregator.http import connections
from aggregator.http.app import SERVICE, build_app
from aggregator.settings.options import Settings
from client_sdk import Client, Event, ParticipantSettings, PrivacyPolicy, TransportSettings
from client_sdk.contribution import TrainingJob
from client_sdk.enrolment import create_bundle, new_partner_key
from client_sdk.state.keystore import open_storage_key
from dp.contracts import CohortSpec, DeadlineSpec, SegmentSpec, TaskSpec
from dp.ledger.findings import AuditResult
from dp.ledger.verification import verify_ledger
from secagg.access_token import issue_access_token
from secagg.http_api import EnrolmentBundle, Offer
from secagg.manifest import Manifest
from secagg.secret import Secret
from tests.kits.databases import with_schema

TOKEN = "operator-token"
TASK = "stats"
QUICK = TransportSettings(
    patience_s=20.0,
    request_s=10.0,
    poll_s=5.0,
    backoff_first_s=0.01,
    backoff_max_s=0.1,
    jitter_s=0.01,
    chunk_bytes=1 << 14,
)
POLICY = PrivacyPolicy(  # everything that small cohorts without noise must be admitted with
    min_cohort=2,
    min_corrupt=0,
    require=None,
    repeat_without_noise=True,  # plain sums make every device visible
    max_epsilon=1e6,
    max_total_epsilon=1e6,
)


class Killed(BaseException):
    """What a device sees of its own SIGKILL: nothing after this line runs."""


def plain_spec(devices: int = 4, survivors: int = 3, **changes: Any) -> TaskSpec:
    """A sum of one number per device, without noise: one-hot inputs make every device visible."""
    fields: dict[str, Any] = {
        "task": TASK,
        "algorithm": "sum",
        "privacy": "none",
        "segments": (SegmentSpec(name="seen", length=16, clip=4.0),),
        "cohort": CohortSpec(
            size_min=devices, size_max=devices, survivors_min=survivors, corrupt_max=0
        ),
        "deadlines": DeadlineSpec(report_s=60.0),
    }
    return TaskSpec(**{**fields, **changes})


class OneHot:
    """Contributes 1 in the place of its own number; counts its calls."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.jobs: list[TrainingJob] = []

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.jobs.append(job)
        values = np.zeros(job.manifest.data_length)
        values[self.number] = 1.0
        return {job.manifest.segments[0].name: values}


class NoContributor:
    """For a device that must finish without training: any call is a failure of the test."""

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        raise AssertionError("a pending session needs no contributor")


Gate = Callable[[web.Request, bytes], Awaitable[bytes | web.Response | None]]


class World:
    """One service, one partner, one task, and as many devices as a test wants."""

    def __init__(self, folder: Path, spec: TaskSpec, **settings: Any) -> None:
        self.folder = folder
        self.spec = spec
        self.port = aiohttp.test_utils.unused_port()
        self.gate: Gate | None = None
        self.ahead_s = 0.0  # of the service's clock: tests move it instead of waiting
        self._settings = Settings(
            data_dir=folder / "service",
            port=self.port,
            operator_token=TOKEN,
            poll_s=0.05,
            log_level="ERROR",
            **settings,
        )
        self._partner = new_partner_key()
        self._bundles: dict[str, EnrolmentBundle] = {}
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> World:
        self._http = aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"})
        await self.start()
        await self.post("/v1/operator/partners", {"name": "p", "key": self._partner.key})
        await self.post("/v1/operator/tasks", self.spec)
        info = await self.get("/v1/server")
        self.info = info
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.stop()
        assert self._http is not None
        await self._http.close()

    # ---- the service

    async def start(self) -> None:
        app = build_app(self._settings, lambda: time.time() + self.ahead_s)
        app.middlewares.insert(0, self._gated)
        with_schema(self._settings)
        self.app = app
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        allowed = connections.public(self._settings, app[SERVICE].core.metrics)
        await connections.Site(self._runner, "127.0.0.1", self.port, allowed).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def restart_soon(self) -> None:
        """Restart beside whatever asks for it, as a crash would."""
        task = asyncio.get_running_loop().create_task(self.restart())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    @web.middleware
    async def _gated(
        self, request: web.Request, handler: Callable[..., Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let a test change the body of an answer (bytes), or the whole of it (a response)."""
        response = await handler(request)
        if self.gate is None:
            return response
        body = response.body if isinstance(response, web.Response) else None
        changed = await self.gate(request, body if isinstance(body, bytes) else b"")
        if isinstance(changed, bytes):
            return web.Response(
                body=changed, status=response.status, content_type=response.content_type
            )
        return response if changed is None else changed

    async def get(self, path: str) -> Any:
        assert self._http is not None
        async with self._http.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def post(self, path: str, body: object = None) -> Any:
        assert self._http is not None
        async with self._http.post(self.url + path, data=msgspec.json.encode(body)) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def get_offer(self, name: str, after_version: int | None = None) -> Offer:
        """The offer that a device sees; with ``after_version`` once there is a newer model."""
        bundle = self.bundle(name)
        token = issue_access_token(
            Secret(bundle.identity_seed), bundle.certificate, bundle.task_key, time.time()
        )
        assert self._http is not None
        headers = {"Authorization": f"Bearer {token}"}
        query = {} if after_version is None else {"after_version": after_version, "wait_s": 30}
        url = f"{self.url}/v1/tasks/{TASK}/offer"
        async with self._http.get(url, headers=headers, params=query) as answer:
            return msgspec.json.decode(await answer.read(), type=Offer)

    def manifest(self) -> Manifest:
        return self.app[SERVICE].tasks._cache[TASK].manifest

    async def view(self) -> Any:
        return await self.get(f"/v1/operator/tasks/{TASK}")

    async def sums(self) -> np.ndarray:
        """The current global vector; for statistics the last released sum."""
        assert self._http is not None
        async with self._http.get(f"{self.url}/v1/operator/tasks/{TASK}/model") as response:
            return safetensors.numpy.load(await response.read())["vector"]

    def audit(self) -> AuditResult:
        folder = self.app[SERVICE].ledger.folder

        def read(path: str) -> bytes | None:
            file = folder / path
            return file.read_bytes() if file.is_file() else None

        return verify_ledger(read, self.info["ledger_verifier"])

    # ---- the devices

    def bundle(self, name: str, not_after: int = 4_000_000_000) -> EnrolmentBundle:
        if name not in self._bundles:
            info = msgspec.convert(self.info, type=dict[str, str])
            self._bundles[name] = create_bundle(
                self.url,
                msgspec.convert(info["task_key"], type=bytes),
                info["ledger_verifier"],
                self._partner.seed,
                not_after,
            )
        return self._bundles[name]

    def reroute(self, name: str, port: int) -> None:
        """From now on this device finds the service at another port, such as a proxy's."""
        self._bundles[name] = replace(self.bundle(name), server=f"http://127.0.0.1:{port}")

    def device(
        self,
        name: str,
        on_event: Callable[[Event], None] | None = None,
        *,
        policy: PrivacyPolicy = POLICY,
        transport: TransportSettings = QUICK,
        settings: ParticipantSettings | None = None,
        **parts: Any,
    ) -> Client:
        """A new client object on the state folder of this name: a new process of this device."""
        folder = self.folder / name
        return Client(
            self.bundle(name),
            policy,
            folder,
            open_storage_key(folder),
            on_event=on_event,
            transport=transport,
            settings=settings or ParticipantSettings(abort_wait_first_s=0.05, opening_s=20.0),
            **parts,
        )


def kill_at(kind: str, times: int = 1) -> Callable[[Event], None]:
    """Dies at the given event, as often as told."""
    left = times

    def on_event(event: Event) -> None:
        nonlocal left
        if event.kind == kind and left:
            left -= 1
            raise Killed

    return on_event


async def at_once(seconds: float) -> None:
    """A device's ``sleep`` that waits for nothing."""
    await asyncio.sleep(0)


async def run_all(world: World, devices: int = 4, rounds: int = 1, **first: Any) -> list[Any]:
    """What each device's run gave, or raised; ``first``: parts of the first one alone."""
    return await asyncio.gather(
        *(
            world.device(f"d{n}", **(first if n == 0 else {})).run_async(
                OneHot(n), task=TASK, rounds=rounds
            )
            for n in range(devices)
        ),
        return_exceptions=True,
    )
