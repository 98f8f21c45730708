"""Tasks: a signed manifest, the versions of its global vector, and what is left of its budget."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec
from nacl.signing import SigningKey

from aggregator.closing import finish
from aggregator.core import Core
from aggregator.errors import Refusal, conflict, not_found
from aggregator.ledger.log import Ledger
from aggregator.partners import keys_of
from aggregator.store import models, partners, reads, tasks
from aggregator.store.database import Conflict, Connection
from aggregator.views import TaskState
from dp.accounting.budget import Account
from dp.contracts import TaskSpec, build_manifest
from dp.ledger.records import policy_record, task_record
from secagg.errors import ConfigurationError
from secagg.hashing import encode_parts
from secagg.manifest import Manifest, decode_manifest, encode_manifest, manifest_digest
from secagg.server import ServerConfig

_MODEL_NAME = re.compile(r"[^./\\~:][^/\\~:]*(/[^./\\~:][^/\\~:]*)?")


@dataclass(frozen=True)
class Task:
    """What never changes about a task."""

    name: str
    manifest: Manifest
    encoded: bytes
    signature: bytes
    config: ServerConfig

    @property
    def digest(self) -> bytes:
        return self.config.manifest_digest


class Tasks:
    """Creates tasks and caches their unchanging part."""

    def __init__(self, core: Core, ledger: Ledger) -> None:
        self._core = core
        self._ledger = ledger
        self._cache: dict[str, Task] = {}

    async def get(self, name: str) -> Task:
        """
        Raises:
            Refusal: ``not-found``.
        """
        if not name.isprintable():  # no task's; PostgreSQL refuses a query with a NUL
            raise not_found("task", name)
        if name not in self._cache:
            found = await tasks.signed_manifest(self._core.database, name)
            if found is None:
                raise not_found("task", name)
            self._cache[name] = self._task(*found)
        return self._cache[name]

    async def shown(self, name: str) -> Task:
        """As :meth:`get`, of a task that was not deleted: what operators see.

        Raises:
            Refusal: ``not-found``.
        """
        task = await self.get(name)
        if await tasks.is_deleted(self._core.database, name):
            raise not_found("task", name)
        return task

    def _task(self, encoded: bytes, signature: bytes) -> Task:
        manifest = decode_manifest(encoded)
        config = ServerConfig(manifest, manifest_digest(encoded), self._core.keys.task)
        return Task(manifest.task, manifest, encoded, signature, config)

    async def create(self, spec: TaskSpec) -> Task:
        """Check, sign and open a task; version 0 is zeros, or the model of ``start_from``.

        Raises:
            ConfigurationError: from ``dp.contracts``, with the reason; ``base-model-path``.
            Refusal: ``task-exists``; ``partner-unknown``; ``not-found`` and
                ``start-mismatch`` about ``start_from``.
        """
        core, now = self._core, self._core.clock()
        spec, manifest, source = await self._manifest(spec, now)
        encoded = encode_manifest(manifest)
        signing_key = SigningKey(core.keys.task.reveal())
        signature = bytes(signing_key.sign(encode_parts("manifest", encoded)).signature)
        task = self._task(encoded, signature)
        vector = None
        if source is not None:
            vector = await core.ask_blobs(models.load, core.blobs, await self._present(source))
        model = await core.ask_blobs(models.initial, core.blobs, manifest, vector)
        try:
            async with core.database.write() as connection:
                await tasks.insert(
                    connection,
                    task.name,
                    spec=msgspec.json.encode(spec).decode(),
                    manifest=encoded,
                    signature=signature,
                    digest=task.digest,
                    account=open_account(manifest),
                    created_at=now,
                )
                record = task_record(encoded, signature, model.digest)
                leaf = await self._ledger.append(connection, [record])
                await tasks.insert_version(connection, task.name, 0, model, None, now, leaf)
        except Conflict as error:
            raise await self._taken(task.name) from error
        await self._ledger.publish()
        return task

    async def plan(self, spec: TaskSpec) -> Manifest:
        """The manifest that :meth:`create` would sign now, unless the name is taken.

        Raises:
            ConfigurationError, Refusal: as :meth:`create`.
        """
        _, manifest, _ = await self._manifest(spec, self._core.clock())
        if await tasks.signed_manifest(self._core.database, spec.task) is not None:
            raise await self._taken(spec.task)
        return manifest

    async def _manifest(self, spec: TaskSpec, now: float) -> tuple[TaskSpec, Manifest, Task | None]:
        """The spec as it counts, its manifest, and the task that it starts from."""
        source = await self.shown(spec.start_from) if spec.start_from else None
        if source is not None:
            spec = _like(spec, source.manifest)
        elif spec.base_model is not None:
            _demand_name(spec.base_model.name)
        async with self._core.database.read() as connection:
            keys = keys_of(await partners.keys_and_names(connection), spec.partners)
        manifest = build_manifest(
            spec,
            created_at=int(now),
            task_key=self._core.keys.task_public,
            ledger_verifier=self._ledger.verifier,
            partner_keys=keys,
        )
        return spec, manifest, source

    async def _taken(self, name: str) -> Refusal:
        deleted = await tasks.is_deleted(self._core.database, name)
        return conflict(
            "task-exists",
            f"A task named {name!r} was deleted." if deleted else f"A task named {name!r} exists.",
            remedy="Choose another name: the ledger keeps each name, and none is used twice.",
        )

    async def _present(self, task: Task) -> bytes:
        """Digest of a task's present model."""
        now = await reads.current(self._core.database, task.name)
        return bytes.fromhex(now.digest)

    async def switch(self, task: Task, state: TaskState) -> None:
        """Pause (``paused``) or resume (``open``) a task; an open cohort goes on to its end.

        Raises:
            Refusal: ``task-finished``, ``task-closed``.
        """
        core = self._core
        async with core.database.write() as connection:
            standing = await tasks.locked(connection, task.name)
            if standing.closed_at is not None:
                raise conflict(
                    "task-closed",
                    "The task was closed by its operator.",
                    remedy="Create a new task; start_from goes on from this one's model.",
                )
            if standing.state == "finished":
                raise conflict(
                    "task-finished",
                    "The task has spent its budget.",
                    remedy="Create a new task.",
                )
            if standing.state == state:
                return
            await tasks.set_state(connection, task.name, state)
            action = "paused" if state == "paused" else "resumed"
            record = policy_record(task.name, action, int(core.clock()))
            await self._ledger.append(connection, [record])
        await self._ledger.publish()
        core.signals.notify(f"task:{task.name}")

    async def close(self, task: Task) -> None:
        """Let no further cohort form, for good; twice changes nothing. See
        :mod:`aggregator.closing`.

        Raises:
            Refusal: ``task-finished``.
        """
        core = self._core
        async with core.database.write() as connection:
            standing = await tasks.locked(connection, task.name)
            if standing.closed_at is not None:
                return
            if standing.state == "finished":
                raise conflict(
                    "task-finished",
                    "The task has spent its budget, and is over.",
                    remedy="There is nothing to close.",
                )
            await self._close(connection, task.name, standing)
        await self._ledger.publish()
        core.signals.notify(f"task:{task.name}")

    async def _close(self, connection: Connection, name: str, standing: tasks.Standing) -> None:
        now = self._core.clock()
        await tasks.close(connection, name, now)
        if standing.cohort is None:
            await finish(connection, self._ledger, name, now)

    async def delete(self, task: Task) -> None:
        """Close a task that was never charged, and hide it. The ledger keeps its record, so the
        name stays taken; its devices hear that it is over.

        Raises:
            Refusal: ``task-charged``; ``task-busy`` while a cohort is open.
        """
        core = self._core
        async with core.database.write() as connection:
            standing = await tasks.locked(connection, task.name)
            if standing.cohort is not None:
                raise conflict(
                    "task-busy",
                    "A cohort of the task is under way.",
                    remedy=f"secagg cohort abort {task.name} ends it; or wait for its end.",
                )
            if standing.charges:
                raise conflict(
                    "task-charged",
                    "The task has released, or was charged: its devices' data have paid for that, "
                    "and whoever asks must find out what for.",
                    expected="no charge",
                    found=standing.charges,
                    remedy=f"secagg task close {task.name} ends it for good.",
                )
            if standing.closed_at is None:
                await self._close(connection, task.name, standing)
            await tasks.hide(connection, task.name, core.clock())
        await self._ledger.publish()
        core.signals.notify(f"task:{task.name}")
        core.metrics.forget_task(task.name)


def _demand_name(name: str) -> None:
    """A base model is named, not located: the manifest is public for good.

    Raises:
        ConfigurationError: ``base-model-path``.
    """
    if not _MODEL_NAME.fullmatch(name) or ".." in name.split("/"):
        raise ConfigurationError(
            "base-model-path",
            "A base model's name looks like a path, which would stand in the public ledger.",
            expected="a name, or a hub id owner/name",
            found=name,
            remedy="Name the model by its hub id or by a name of your own; its fingerprint tells "
            "devices whether they have the same.",
        )


def _like(spec: TaskSpec, source: Manifest) -> TaskSpec:
    """The spec with the base model and adapter of the task that it starts from."""
    given = (spec.base_model, spec.adapter)
    if given not in ((None, None), (source.base_model, source.adapter)):
        raise conflict(
            "start-mismatch",
            f"The model of {source.task!r} belongs to another adapter or base model.",
            remedy="Leave base_model and adapter out.",
        )
    return msgspec.structs.replace(spec, base_model=source.base_model, adapter=source.adapter)


def open_account(manifest: Manifest) -> Account:
    """An account with nothing spent and the task's limits."""
    return Account(delta=manifest.budget.delta, max_epsilon=manifest.budget.max_epsilon)
