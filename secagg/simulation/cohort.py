"""One cohort from report-in to release, over the real machines and without a network."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from secagg import ring, server
from secagg.errors import RemoteProtocolError
from secagg.simulation.devices import Delivery, Device, Devices, Drop, LocalDevices, Output
from secagg.simulation.task import EPOCH_S, SimulatedTask, seeded_tools
from secagg.unmasking import UnmaskingPlan, check_sum, unmask_slice

Integers = npt.NDArray[np.int64]
_LATENCY_S = 0.01  # simulated seconds per batch of messages


@dataclass
class Hooks:
    """Where a test may interfere. Device numbers are enrolment numbers.

    ``upward(number, message)``: the messages that reach the aggregator instead of this one.
    ``downward(number, message)``: the messages that reach the device instead of this one.
    ``vector(number, payload)``: the packed vector that arrives instead of this one.
    ``order(items)``: reorders one batch of what is on its way to the aggregator.
    ``phase(name)``: is told each phase that the aggregator enters.
    """

    upward: Callable[[int, bytes], Sequence[bytes]] | None = None
    downward: Callable[[int, bytes], Sequence[bytes]] | None = None
    vector: Callable[[int, bytes], bytes] | None = None
    order: Callable[[list[Output]], list[Output]] | None = None
    phase: Callable[[str], None] | None = None


@dataclass
class CohortResult:
    """How a cohort ended.

    Attributes:
        state: the aggregator's last state, ``Released`` or ``Aborted``.
        total: the released sum, int64[data_length], or None.
        survivors: enrolment numbers of the contributors, sorted; empty if there is no release.
        numbers: enrolment number of each roster index.
        events: everything that went into the aggregator's machine and was not refused, if kept.
        refused: (enrolment number, reason) of messages that the aggregator refused.
        ended: the machine's last word.
    """

    state: server.State
    total: Integers | None
    survivors: tuple[int, ...]
    numbers: tuple[int, ...]
    events: tuple[server.Event, ...] = field(repr=False)
    refused: tuple[tuple[int, str], ...]
    ended: server.Ended
    digest: bytes


@dataclass(frozen=True)
class Mail:
    """A message for a device that is made when it leaves."""

    number: int
    effect: server.Deliver
    now_s: float


class Aggregator:
    """A driver of the aggregator's machine in memory: mailboxes, partial sum, clock.

    ``keep_events``: remember what went into the machine, which is every message of the cohort.
    """

    def __init__(
        self,
        task: SimulatedTask,
        adverts: Sequence[bytes],
        *,
        cohort: bytes,
        attempt: int,
        hooks: Hooks,
        keep_events: bool = True,
    ) -> None:
        self.task = task
        self.hooks = hooks
        self.keep_events = keep_events
        self.now_s = float(EPOCH_S)
        self.events: list[server.Event] = []
        self.refused: list[tuple[int, str]] = []
        self.ended: server.Ended | None = None
        self.total: Integers | None = None
        self.outbox: deque[Mail] = deque()
        self._digest = hashlib.sha256()
        self._uploads: dict[int, server.AcceptUpload] = {}
        encoding = task.manifest.encoding
        length = ring.payload_length(task.manifest.data_length, encoding.slice_length)
        self._sum = np.zeros(length, ring.lane_dtype(encoding.ring_bits))
        by_identity = {
            config.certificate.identity_key: number for number, config in enumerate(task.devices)
        }
        self.state: server.State
        self.state, effects = server.open_cohort(
            task.server, cohort=cohort, attempt=attempt, adverts=adverts, now_s=self.now_s
        )
        self.numbers = tuple(by_identity[entry.identity_key] for entry in self.state.roster)
        self.index_of = {number: index for index, number in enumerate(self.numbers)}
        self._note(self.state.ctx)
        self._perform(effects)

    @property
    def digest(self) -> bytes:
        return self._digest.digest()

    def receive(self, output: Output) -> None:
        """A message of a device arrived, with its vector if there is one."""
        messages: Sequence[bytes] = [output.message]
        if self.hooks.upward:
            messages = self.hooks.upward(output.number, output.message)
        index = self.index_of[output.number]
        for message in messages:
            self._step(server.Received(index, message, self.now_s), output.number)
        if output.payload is not None and index in self._uploads:
            payload = output.payload
            if self.hooks.vector:
                payload = self.hooks.vector(output.number, payload)
            self._add(index, output.number, payload)

    def tick(self) -> None:
        """Let the deadline of the present phase pass."""
        self.now_s = max(self.now_s, self.state.deadline_s)
        self._step(server.Tick(self.now_s))

    def _add(self, index: int, number: int, payload: bytes) -> None:
        accepted = self._uploads.pop(index)
        if (hashlib.sha256(payload).digest(), len(payload)) != (
            accepted.vector_digest,
            accepted.size_bytes,
        ):
            self.refused.append((number, "vector-digest"))
            return
        bits = self.task.manifest.encoding.ring_bits
        ring.add_into(self._sum, ring.unpack(payload, len(self._sum), bits), bits)
        self._step(server.VectorAdded(index, self.now_s))

    def _step(self, event: server.Event, number: int = -1) -> None:
        try:
            self.state, effects = server.step(self.task.server, self.state, event)
        except RemoteProtocolError as error:
            self.refused.append((number, error.reason))
            return
        if self.keep_events:
            self.events.append(event)
        self._perform(effects)

    def _perform(self, effects: Sequence[server.Effect]) -> None:
        for effect in effects:
            match effect:
                case server.Deliver(index):
                    self.outbox.append(Mail(self.numbers[index], effect, self.now_s))
                case server.AcceptUpload(index, vector_digest, _):
                    self._note(index.to_bytes(4, "little"), vector_digest)
                    self._uploads[index] = effect
                case server.RemoveMasks(plan):
                    self._unmask(plan)
                case server.Wake():
                    self._note(self.state.phase.encode())
                    if self.hooks.phase:
                        self.hooks.phase(self.state.phase)
                case server.Ended(reason, _):
                    self.ended = effect
                    self._note(b"ended", (reason or "").encode())

    def _unmask(self, plan: UnmaskingPlan) -> None:
        state = self.state
        assert isinstance(state, server.UnmaskingSum)  # noqa: S101  narrows the type for mypy
        middle = plan.length // 2
        unmask_slice(plan, self._sum, 0, middle)
        unmask_slice(plan, self._sum, middle, plan.length)
        try:
            check_sum(self.task.manifest, self._sum, len(state.survivors))
        except RemoteProtocolError as error:
            self._step(server.SumRefused(error.reason, self.now_s))
            return
        encoding = self.task.manifest.encoding
        _, data = ring.split_checks(self._sum, encoding.slice_length)
        self.total = ring.centred(data, encoding.ring_bits)
        self._note(self.total.tobytes(), np.array(state.survivors).tobytes())
        self._step(server.SumUnmasked(self.now_s))
        self._step(server.ReleaseCommitted(1, 1, self.now_s))

    def _note(self, *parts: bytes) -> None:
        for part in parts:
            self._digest.update(len(part).to_bytes(8, "little") + part)


def drive(aggregator: Aggregator, devices: Devices) -> CohortResult:
    """Carry messages until the cohort has ended and every mailbox is empty."""
    hooks = aggregator.hooks
    while aggregator.ended is None or aggregator.outbox:
        if not aggregator.outbox:
            aggregator.tick()
            continue
        batch, aggregator.outbox = aggregator.outbox, deque()
        arriving: Iterable[Delivery] = _arriving(batch, hooks)
        if hooks.downward:  # which may look at a whole batch before any device does
            arriving = list(arriving)
        outputs: Iterable[Output] = devices.deliver(arriving)
        if hooks.order:
            outputs = hooks.order(list(outputs))
        aggregator.now_s += _LATENCY_S
        for output in outputs:
            aggregator.receive(output)
    state = aggregator.state
    survivors: tuple[int, ...] = ()
    if isinstance(state, server.Released):
        survivors = tuple(sorted(aggregator.numbers[index] for index in state.survivors))
    return CohortResult(
        state=state,
        total=aggregator.total if survivors else None,
        survivors=survivors,
        numbers=aggregator.numbers,
        events=tuple(aggregator.events),
        refused=tuple(aggregator.refused),
        ended=aggregator.ended,
        digest=aggregator.digest,
    )


def _arriving(batch: deque[Mail], hooks: Hooks) -> Iterator[Delivery]:
    """What reaches the devices of a batch; each message is forgotten as soon as it is under way."""
    while batch:
        mail = batch.popleft()
        messages: Sequence[bytes] = [mail.effect.message]
        if hooks.downward:
            messages = hooks.downward(mail.number, messages[0])
        for message in messages:
            yield Delivery(mail.number, message, mail.now_s)


def make_devices(
    task: SimulatedTask,
    vectors: Sequence[Integers],
    *,
    drops: Mapping[int, Drop] | None = None,
    seed: int = 0,
) -> list[Device]:
    """One device per vector (int64[data_length]), with the given drop-outs."""
    encoding = task.manifest.encoding

    def payload(number: int) -> Callable[[], ring.Lanes]:
        return lambda: ring.with_checks(vectors[number], encoding.ring_bits, encoding.slice_length)

    return [
        Device(
            task.devices[number],
            number,
            model_digest=task.model_digest,
            vector=payload(number),
            tools=seeded_tools(seed, number),
            drop=(drops or {}).get(number, Drop.NEVER),
        )
        for number in range(len(vectors))
    ]


def run_cohort(
    task: SimulatedTask,
    vectors: Sequence[Integers],
    *,
    drops: Mapping[int, Drop] | None = None,
    hooks: Hooks | None = None,
    seed: int = 0,
    cohort: bytes = bytes(32),
    devices: Sequence[Device] | None = None,
) -> CohortResult:
    """Run one cohort of the task's devices to its end.

    Args:
        vectors: int64[data_length] of each device, by enrolment number.
        drops: when a device is lost; without an entry it stays to the end.
        devices: use these devices instead of making them from ``vectors``.
    """
    members = devices or make_devices(task, vectors, drops=drops, seed=seed)
    pool = LocalDevices(members)
    aggregator = Aggregator(
        task, pool.advertise(), cohort=cohort, attempt=0, hooks=hooks or Hooks()
    )
    return drive(aggregator, pool)
