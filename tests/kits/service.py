"""Drives the real service over loopback with the real device machine: no mock in between."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from aiohttp import web
from nacl.signing import SigningKey

from aggregator.http import connections
from aggregator.http.app import SERVICE, build_app
from aggregator.settings.options import Settings
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, SegmentSpec, TaskSpec
from dp.encoding import encode
from secagg import client, http_api
from secagg import server as machine
from secagg.access_token import issue_access_token
from secagg.keys import issue_certificate
from secagg.manifest import decode_manifest, manifest_digest
from secagg.messages import KINDS, Unmask
from secagg.secret import Secret
from secagg.tools import system_tools
from tests.kits.databases import with_schema

TOKEN = "operator-token-of-the-tests"
PARTNER = Secret(os.urandom(32))
TASK = "statistics"
QUIET_S = 60.0  # a test that waits longer than this has failed; a busy machine has not


def spec(**changes: Any) -> TaskSpec:
    """Sums of a vector of ``d`` numbers over 4 devices of which one may vanish."""
    values: dict[str, Any] = {
        "task": TASK,
        "algorithm": "sum",
        "privacy": "none",
        "segments": (SegmentSpec(name="count", length=40, clip=100.0),),
        "cohort": CohortSpec(size_min=4, size_max=4, survivors_min=3, corrupt_max=0),
        "deadlines": DeadlineSpec(
            report_s=60, share_s=60, check_s=60, masked_input_s=60, confirm_s=60, unmask_s=60
        ),
        "budget": BudgetSpec(max_epsilon=None, releases_max=3),
    }
    return TaskSpec(**{**values, **changes})


def _free_port() -> socket.socket:
    """A socket that keeps its port from others, also while the service is stopped.

    Nobody listens on it, so that connections are then refused as they would be.
    """
    held = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        held.setsockopt(socket.SOL_SOCKET, option, 1)
    held.bind(("127.0.0.1", 0))
    return held


class Served:
    """One replica on a port of its own, over a data folder that outlives it."""

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        values = {"data_dir": data_dir, "operator_token": TOKEN, "poll_s": 0.05, **settings}
        self.settings = Settings.load(**values)
        self._held = _free_port()
        self._port = self._held.getsockname()[1]
        scheme = "http" if self.settings.tls_certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._port}"
        self.ahead_s = 0.0  # of the service's clock: tests move it instead of waiting

    def clock(self) -> float:
        return time.time() + self.ahead_s

    async def start(self) -> None:
        self.app = build_app(self.settings, self.clock)
        with_schema(self.settings)
        self.runner = web.AppRunner(self.app, access_log=None, shutdown_timeout=2.0)
        await self.runner.setup()
        self.connections = connections.public(self.settings, self.service.core.metrics)
        tls = self.service.tls
        site = connections.Site(
            *(self.runner, "127.0.0.1", self._port, self.connections),
            tls=None if tls is None else tls.public,
            reuse_port=True,
        )
        await site.start()

    @property
    def service(self) -> Any:
        return self.app[SERVICE]

    async def stop(self) -> None:
        await self.runner.cleanup()

    def release_port(self) -> None:
        self._held.close()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def operator(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        data = None if body is None else msgspec.json.encode(body)
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, f"{self.url}/v1/operator{path}", data=data, headers=headers) as r,
        ):
            return r.status, msgspec.json.decode(await r.read())

    async def set_up(self, task: TaskSpec) -> Any:
        partner = bytes(SigningKey(PARTNER.reveal()).verify_key)
        status, _ = await self.operator("POST", "/partners", {"name": "p", "key": partner})
        assert status == 200
        status, view = await self.operator("POST", "/tasks", task)
        assert status == 200, view
        return view

    async def view(self, task: str = TASK) -> Any:
        return (await self.operator("GET", f"/tasks/{task}"))[1]

    async def until(self, condition: Callable[[Any], bool], task: str = TASK) -> Any:
        """Poll the operator's view until it is as wanted."""
        end = time.monotonic() + QUIET_S
        while time.monotonic() < end:
            view = await self.view(task)
            if condition(view):
                return view
            await asyncio.sleep(0.02)
        raise AssertionError(f"never came: {view}")


@asynccontextmanager
async def served(data_dir: Path, task: TaskSpec | None = None, **settings: Any):
    server = Served(data_dir, **settings)
    await server.start()
    try:
        if task is not None:
            await server.set_up(task)
        yield server
    finally:
        await server.stop()
        server.release_port()


class Gone(Exception):
    """The device was told to vanish at this point."""


@dataclass
class Device:
    """A device with the real machine and the barest transport.

    ``stop_before``: the name of the message before which it vanishes: ``advert``, ``deals``,
    ``ready``, ``header``, ``vector``, ``half-vector``, ``confirmation``, ``unmask``.
    """

    server: Served
    number: int
    value: np.ndarray
    stop_before: str | None = None
    task: str = TASK
    chunk: int = 1 << 20
    seed: Secret = field(default_factory=lambda: Secret(os.urandom(32)))
    hold: Callable[[str], Any] | None = None  # awaited before each message
    partner: Secret = field(default_factory=lambda: PARTNER)
    trusted: frozenset[bytes] | None = None  # partners; None: all of the manifest's

    def __post_init__(self) -> None:
        key = bytes(SigningKey(self.seed.reveal()).verify_key)
        self.certificate = issue_certificate(self.partner, key, int(time.time()) + 86_400)
        self.tools = system_tools()
        self.after = 0
        self.outcome: Any = None
        self.sent: list[bytes] = []
        self.payload = b""
        self.session = ""
        self.gone = False
        self.http: aiohttp.ClientSession | None = None

    async def request(self, method: str, path: str, **arguments: Any) -> tuple[int, bytes]:
        """One request, repeated while the service is away."""
        headers = {"Authorization": f"Bearer {await self.token()}", **arguments.pop("headers", {})}
        assert self.http is not None
        end = time.monotonic() + QUIET_S
        while True:
            try:
                async with self.http.request(
                    method, self.server.url + path, headers=headers, **arguments
                ) as response:
                    return response.status, await response.read()
            except aiohttp.ClientError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.02)

    async def token(self) -> str:
        audience = self.server.service.core.keys.task_public
        return issue_access_token(self.seed, self.certificate, audience, time.time())

    async def json(self, method: str, path: str, kind: Any, **arguments: Any) -> Any:
        status, body = await self.request(method, path, **arguments)
        assert status == 200, body
        return msgspec.json.decode(body, type=kind)

    async def point(self, name: str) -> None:
        if self.hold is not None:
            await self.hold(name)
        if self.stop_before == name:
            raise Gone

    async def run(self) -> Any:
        """Take part in one cohort; the terminal state, or None if it vanished."""
        async with aiohttp.ClientSession() as self.http:
            try:
                await self.report_in()
                while self.outcome is None:
                    await self.listen()
            except Gone:
                self.gone = True
        return self.outcome

    async def report_in(self) -> None:
        offer = await self.json("GET", f"/v1/tasks/{self.task}/offer", http_api.Offer)
        manifest = decode_manifest(offer.manifest)
        self.config = client.ClientConfig(
            self.seed,
            self.certificate,
            manifest,
            manifest_digest(offer.manifest),
            manifest.cohort.survivors_min,
            frozenset(manifest.partner_keys) if self.trusted is None else self.trusted,
        )
        self.state, (sent,) = client.advertise(
            self.config,
            model_version=offer.model.version,
            model_digest=offer.model.digest,
            now_s=time.time(),
            lifetime_s=600,
            tools=self.tools,
        )
        self.advert = sent.message
        await self.point("advert")
        accepted = await self.json(
            "POST", "/v1/adverts", http_api.AdvertAccepted, data=sent.message
        )
        self.session = f"/v1/sessions/{accepted.session}"

    async def listen(self) -> None:
        path = f"{self.session}/messages?after={self.after}&wait_s=5"
        status, body = await self.request("GET", path)
        assert status == 200, body
        for message in msgspec.json.decode(body, type=http_api.Mail).messages:
            self.after += 1
            await self.feed(client.Received(message, time.time()))

    async def feed(self, event: client.Event) -> None:
        self.state, effects = client.step(self.config, self.state, event, self.tools)
        for effect in effects:
            await self.perform(effect)

    async def perform(self, effect: client.Effect) -> None:
        match effect:
            case client.Send(message):
                names = {"shared": "deals", "checked": "ready", "confirmed": "confirmation"}
                await self.point(names.get(self.state.phase, "unmask"))
                await self.post(message)
            case client.ProvideVector(ctx, members, seeds):
                lanes = encode(
                    self.config.manifest,
                    {"count": self.value},
                    rotation_seed=ctx,
                    random_bytes=self.tools.random_bytes,
                    masking_set_size=members,
                    noise_seeds=seeds,
                )
                await self.feed(client.VectorReady(lanes))
            case client.Upload(header, payload):
                self.payload = payload
                await self.point("header")
                await self.post(header)
                await self.upload(payload)
            case client.Finished() | client.Failed():
                self.outcome = effect

    async def post(self, message: bytes) -> int:
        self.sent.append(message)
        status, body = await self.request("POST", f"{self.session}/messages", data=message)
        self.answer = (status, body)
        return status

    async def upload(self, payload: bytes) -> None:
        await self.point("vector")
        while True:
            status, body = await self.request("GET", f"{self.session}/vector")
            if status == 409:
                return
            done = msgspec.json.decode(body, type=http_api.UploadState)
            if done.complete:
                return
            offset = done.received_bytes
            if offset:
                await self.point("half-vector")
            part = payload[offset : offset + self.chunk]
            status, body = await self.request(
                "PUT", f"{self.session}/vector?offset={offset}", data=part
            )
            self.answer = (status, body)
            if status not in (200, 409):
                return


class Liar(Device):
    """Deals shares of another self seed than it committed to."""

    async def point(self, name: str) -> None:
        if name == "advert":
            self.state = replace(self.state, self_seed=Secret(os.urandom(32)))
        await super().point(name)


def one_hot(number: int, length: int = 40) -> np.ndarray:
    """Device ``number`` counts 1 at its own place, so that a double count shows as a 2."""
    value = np.zeros(length)
    value[number] = 1.0
    return value


def devices(server: Served, count: int, **changes: Any) -> list[Device]:
    return [Device(server, number, one_hot(number), **changes) for number in range(count)]


async def current_sum(server: Served, task: str = TASK) -> np.ndarray:
    """The published vector of the task's current version."""
    from aggregator.store import models

    view = await server.view(task)
    return models.load(server.service.core.blobs, bytes.fromhex(view["model_digest"]))


DEADLINE_S = 61.0  # longer than any in spec()


def waited_for(state: machine.State) -> set[int]:
    """Roster indices from which the phase still wants something."""
    match state:
        case machine.Sharing():
            return set(range(state.facts.size)) - state.dealt.keys()
        case machine.Checking():
            return set(state.dealers) - state.answered
        case machine.Masking():
            return set(state.masking_set) - state.added
        case machine.Confirming():
            return set(state.survivors) - state.confirmations.keys()
        case machine.Unmasking():
            number, _ = KINDS[Unmask]
            return set(state.survivors) - state.accepted.get(number, {}).keys()
    return set()


async def run(fleet: list[Device]) -> list[Any]:
    """Run devices to their ends; deadlines pass as soon as only vanished devices are due."""
    served = fleet[0].server
    vanished = {bytes(SigningKey(d.seed.reveal()).verify_key): d for d in fleet}
    tasks = [asyncio.create_task(device.run()) for device in fleet]
    while not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=0.02, return_when=asyncio.FIRST_EXCEPTION)
        for live in tuple(served.service.driver.live.values()):
            state = live.cohort.state
            due = waited_for(state)
            keys = {state.roster[index].identity_key for index in due}
            late = state.deadline_s < served.clock()
            if keys and not late and all(key in vanished and vanished[key].gone for key in keys):
                served.ahead_s += DEADLINE_S
    return [task.result() for task in tasks]


def finished(outcomes: list[Any]) -> int:
    return sum(isinstance(outcome, client.Finished) for outcome in outcomes)
