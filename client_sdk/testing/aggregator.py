"""What a test holds of the aggregator: it enrols devices, runs them, and shows what came of it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
from aiohttp import web

from client_sdk.client import Client
from client_sdk.contribution import Contributor
from client_sdk.enrolment import create_bundle, save_bundle
from client_sdk.events import EventKind
from client_sdk.policy import PrivacyPolicy
from client_sdk.rounds.result import RunResult
from client_sdk.testing.books import Books, Release, Step
from client_sdk.testing.cohorts import Formation
from client_sdk.testing.http import Routes
from dp.accounting.budget import Account
from dp.contracts import TaskSpec
from dp.contracts.spec import parse_spec
from secagg.errors import ConfigurationError
from secagg.graph.parameters import threshold
from secagg.http_api import EnrolmentBundle

if TYPE_CHECKING:
    from secagg.manifest import AdapterKind, Manifest

_ENROLLED_S = 30 * 24 * 3600
_STOPPING_S = 1.0


class Aggregator:
    """One task's aggregator on a port of its own on 127.0.0.1. Use as an async context manager.

    Keys, masks and noise are drawn anew each time: a sum without noise is the same all the same,
    and one with noise is compared within a few ``Release.deviation``.

    Args:
        task: the task's specification: the path of the file that ``secagg task create`` takes
            (TOML), or its content as a mapping.
        devices: cohorts of exactly so many devices in place of the task's own, with the same share
            of them in the smallest sum; None: as the task says.
        model: for a task that trains: the loaded model, as ``secagg task create --model``.
        targets, rank, alpha, adapter: of its adapter, as the options of that command.
        step: the server's half: (vector float32[d], :class:`Release`) -> the next vector. None:
            the model of a ``sum`` task is the sum, any other stays as it is.

    Raises:
        ConfigurationError: ``spec-malformed``; what ``secagg task create`` refuses;
            ``testing-task`` for SCAFFOLD, FedBuff and adaptive clips.
    """

    def __init__(
        self,
        task: str | Path | Mapping[str, Any],
        *,
        devices: int | None = None,
        model: Any = None,
        targets: Collection[str] = ("q_proj", "v_proj"),
        rank: int = 4,
        alpha: int = 8,
        adapter: AdapterKind = "ffa-lora",
        step: Step | None = None,
    ) -> None:
        spec = _spec(task)
        if model is not None:
            spec = _with_model(spec, model, adapter, rank, alpha, tuple(targets))
        if devices is not None:
            spec = _shrunk(spec, devices)
        self._folder = tempfile.TemporaryDirectory(prefix="secagg-testing-")
        self._root = Path(self._folder.name)
        models = self._root / "models"
        models.mkdir()
        try:
            self._books = Books(spec, models, time.time, step)
        except BaseException:
            self._folder.cleanup()
            raise
        self._formation = Formation(self._books, time.time)
        self._routes = Routes(self._formation, models, time.time)
        self._runner: web.AppRunner | None = None
        self._url = ""
        self._enrolled = 0
        self._identities: dict[Path, bytes] = {}  # by state folder

    async def __aenter__(self) -> Aggregator:
        self._runner = web.AppRunner(
            self._routes.app(), access_log=None, shutdown_timeout=_STOPPING_S
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self._url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._formation.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._folder.cleanup()

    # ---- devices

    @property
    def url(self) -> str:
        """Base URL, e.g. ``http://127.0.0.1:40123``."""
        return self._url

    def bundle(self, path: str | Path | None = None, *, server: str | None = None) -> Path:
        """Enrol one more device; the file of its bundle, for :meth:`Client.from_bundle`.

        Args:
            path: where to write it; None: into the test's own folder, which goes with it.
            server: base URL that the device is to use, such as that of a proxy; None: :attr:`url`.
        """
        self._enrolled += 1
        path = self._root / f"device-{self._enrolled}.json" if path is None else Path(path)
        save_bundle(path, self._new_bundle(server))
        return path

    def client(self, *, policy: PrivacyPolicy | None = None, **options: Any) -> Client:
        """One more enrolled device with a state folder of its own in the test's folder.

        Args:
            policy: the app's; None: :meth:`policy`, which admits the task.
            options: as :meth:`client_sdk.Client.from_bundle`.
        """
        self._enrolled += 1
        folder = self._root / f"state-{self._enrolled}"
        bundle = self._new_bundle(None)
        options = {"state_dir": folder, **options}
        client = Client.from_bundle(bundle, policy=policy or self.policy(), **options)
        self._identities[client.state_dir] = bundle.certificate.identity_key
        return client

    def clients(
        self, count: int, *, policy: PrivacyPolicy | None = None, **options: Any
    ) -> list[Client]:
        """So many of :meth:`client`."""
        return [self.client(policy=policy, **options) for _ in range(count)]

    def policy(self, **changes: Any) -> PrivacyPolicy:
        """A policy that admits this task, whatever it costs, with ``changes`` of its fields.

        It says nothing about what an app should ship: the defaults of
        :class:`client_sdk.PrivacyPolicy` refuse small cohorts and tasks without noise.
        """
        manifest = self._books.manifest
        admitting: dict[str, Any] = {
            "min_cohort": manifest.cohort.survivors_min,
            "min_corrupt": manifest.cohort.corrupt_max,
            "max_epsilon": float("inf"),
            "max_total_epsilon": float("inf"),
            "max_delta": max(1e-5, manifest.budget.delta),
            "require": None,
            "repeat_without_noise": True,
        }
        return PrivacyPolicy(**admitting | changes)

    async def run(
        self,
        clients: Sequence[Client],
        contributor: Contributor | Sequence[Contributor],
        *,
        rounds: int | None = 1,
        lost: Mapping[int, EventKind] | None = None,
    ) -> list[RunResult | None]:
        """Let devices take part at the same time, each as with :meth:`client_sdk.Client.run`.

        Args:
            clients: of this aggregator.
            contributor: of all of them, or one for each.
            rounds: releases that each is to be in; None: until the task ends.
            lost: by place in ``clients``, the event at which a device vanishes without a word:
                before ``masking`` it is in no sum, from ``uploaded`` on its vector is. Nobody
                waits for a lost device: where the others are too few, the task ends.

        Returns:
            Of each device what :meth:`client_sdk.Client.run` returns; None for a lost one. Running
            a lost client again goes on from its state folder.
            A contributor that fails counts as a survivor where noise hides its zeros: look at
            ``failures`` too.

        Raises:
            ValueError: ``lost`` names no client or event, or an event that did not come.
            What a client raised first; the others are stopped.
        """
        given = list(contributor) if isinstance(contributor, Sequence) else [contributor]
        each = given if isinstance(contributor, Sequence) else given * len(clients)
        if len(each) != len(clients):
            raise ValueError(f"{len(each)} contributors for {len(clients)} clients")
        gone = dict(lost or {})
        for place, event in gone.items():
            if place not in range(len(clients)) or event not in get_args(EventKind):
                raise ValueError(
                    f"lost has {{{place!r}: {event!r}}}; it takes a place below {len(clients)} and "
                    f"an event: {', '.join(get_args(EventKind))}"
                )
        for client in clients:
            self._formation.expect(self._identity(client))

        async def take_part(place: int) -> RunResult | None:
            client = clients[place]
            try:
                if place not in gone:
                    return await client.run_async(each[place], task=self.task, rounds=rounds)
                events = client.participate(each[place], task=self.task, rounds=rounds)
                async for event in events:
                    if event.kind == gone[place]:
                        await events.aclose()
                        return None
                raise ValueError(f"device {place} was not lost: no event {gone[place]!r} came")
            finally:
                self._formation.lose(self._identity(client))

        works = [asyncio.create_task(take_part(place)) for place in range(len(clients))]
        try:
            return await asyncio.gather(*works)
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            for client in clients:
                self._formation.forget(self._identity(client))

    def finish(self) -> None:
        """End the task, as an operator does; devices that wait for a cohort return."""
        self._formation.finish()

    # ---- what came of it

    @property
    def task(self) -> str:
        """The task's name."""
        return self._books.manifest.task

    @property
    def manifest(self) -> Manifest:
        """The signed manifest that devices are offered."""
        return self._books.manifest

    @property
    def state(self) -> Literal["open", "finished"]:
        """Whether further cohorts can form."""
        return "finished" if self._formation.finished else "open"

    @property
    def releases(self) -> list[Release]:
        """All released sums, in order."""
        return list(self._books.releases)

    @property
    def charges(self) -> int:
        """Cohorts that the task was charged for, with a release or without one."""
        return len(self._books.charges)

    @property
    def aborts(self) -> list[str]:
        """Reasons of the cohorts that ended without a release, in order."""
        ended = [cohort.ended for cohort in self._formation.cohorts]
        return [end.reason for end in ended if end is not None and end.reason is not None]

    @property
    def ledger(self) -> Mapping[str, bytes]:
        """The ledger's files by path, as an auditor reads them: tiles, lists, checkpoint."""
        return self._books.ledger

    @property
    def verifier(self) -> str:
        """The ledger's key, as C2SP writes it."""
        return self._books.verifier

    @property
    def account(self) -> Account:
        """The task's privacy account."""
        return self._books.account

    def _new_bundle(self, server: str | None) -> EnrolmentBundle:
        if not self._url:
            raise RuntimeError("use it as an async context manager")
        books = self._books
        until = int(time.time()) + _ENROLLED_S
        return create_bundle(
            server or self._url, books.task_key, books.verifier, books.partner.seed, until
        )

    def _identity(self, client: Client) -> bytes:
        if client.state_dir not in self._identities:
            raise ValueError("the client is not one of this aggregator's client() or clients()")
        return self._identities[client.state_dir]


def _spec(task: str | Path | Mapping[str, Any]) -> TaskSpec:
    """
    Raises:
        ConfigurationError: ``spec-missing`` or ``spec-malformed``.
    """
    if isinstance(task, Mapping):
        try:
            return msgspec.convert(dict(task), TaskSpec, strict=True)
        except msgspec.ValidationError as error:
            raise ConfigurationError(
                "spec-malformed", f"The task's specification does not parse: {error}."
            ) from error
    try:
        content = Path(task).read_bytes()
    except OSError as error:
        raise ConfigurationError(
            "spec-missing", f"The task's specification cannot be read: {error}."
        ) from error
    return parse_spec(content)


def _with_model(
    spec: TaskSpec, model: Any, kind: AdapterKind, rank: int, alpha: int, targets: tuple[str, ...]
) -> TaskSpec:
    from client_sdk.training.lora import adapter_spec, base_fingerprint
    from secagg.manifest import BaseModel

    name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    return msgspec.structs.replace(
        spec,
        base_model=BaseModel(name=Path(name).name, fingerprint=base_fingerprint(model)),
        adapter=adapter_spec(model, kind, rank, alpha, targets, bytes(range(32))),
    )


def _shrunk(spec: TaskSpec, devices: int) -> TaskSpec:
    """The same task over so few devices; what follows from their number follows anew."""
    cohort = spec.cohort
    enough = threshold(devices - 1, 0) + 1 if devices > 2 else 2  # shares to take the masks off
    kept = max(enough, devices * cohort.survivors_min // cohort.size_min)
    small = msgspec.structs.replace(
        cohort,
        size_min=devices,
        size_max=devices,
        survivors_min=min(devices, kept),
        corrupt_max=None,
        silent_max=None,
    )
    return msgspec.structs.replace(spec, cohort=small)
