"""Simulated devices in worker processes, since their cryptography is nearly all of the work.

Parent and workers exchange MessagePack bytes over pipes; nothing that comes out of a protocol
machine is pickled. A device draws everything from its own seed, so the split into processes does
not change what it does. Messages go out in portions, the next one before the answers to the last
are read, so that devices and aggregator work at the same time and no more than two portions are
copied at once.
"""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection

import msgspec

from secagg.simulation.devices import Delivery, LocalDevices, Output
from secagg.simulation.plan import Plan

_PORTION_BYTES = 16 << 20  # of messages under way at once
_PORTION_MESSAGES = 64  # fewer would wait for each other more often

_Item = tuple[int, int, bytes, float]  # place in the batch, device, message, now_s
_Answer = tuple[int, int, bytes, bytes | None]  # place in the batch, device, message, payload


class _Order(msgspec.Struct, tag=True):
    """Make the devices of this round; answered by their adverts."""

    round_number: int
    numbers: list[int]


class _Batch(msgspec.Struct, tag=True):
    """Deliver these messages; answered by what the devices send."""

    items: list[_Item]


_encode = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(_Order | _Batch).decode
_decode_adverts = msgspec.msgpack.Decoder(list[bytes]).decode
_decode_answers = msgspec.msgpack.Decoder(list[_Answer]).decode


class WorkerRounds:
    """The devices of one round after another, dealt out over worker processes."""

    def __init__(self, plan: Plan, processes: int) -> None:
        self._plan = plan
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            near, far = context.Pipe()
            process = context.Process(
                target=_work, args=(far, msgspec.msgpack.encode(plan)), daemon=True
            )
            process.start()
            far.close()
            self._pipes.append(near)
            self._processes.append(process)

    def advertise(self, round_number: int) -> Sequence[bytes]:
        numbers = range(self._plan.clients)
        for place, pipe in enumerate(self._pipes):
            mine = list(numbers[place :: len(self._pipes)])
            pipe.send_bytes(_encode(_Order(round_number, mine)))
        adverts: list[bytes] = [b""] * len(numbers)
        for place, pipe in enumerate(self._pipes):
            adverts[place :: len(self._pipes)] = _decode_adverts(pipe.recv_bytes())
        return adverts

    def deliver(self, deliveries: Iterable[Delivery]) -> Iterator[Output]:
        sent = 0
        for portion in _portions(deliveries):
            self._send(portion)
            if sent:
                yield from self._answers()
            sent += 1
        if sent:
            yield from self._answers()

    def _send(self, portion: Sequence[Delivery]) -> None:
        shares: list[list[_Item]] = [[] for _ in self._pipes]
        for place, delivery in enumerate(portion):
            item = (place, delivery.number, delivery.message, delivery.now_s)
            shares[delivery.number % len(self._pipes)].append(item)
        for pipe, items in zip(self._pipes, shares, strict=True):
            pipe.send_bytes(_encode(_Batch(items)))

    def _answers(self) -> Iterator[Output]:
        answers = [a for pipe in self._pipes for a in _decode_answers(pipe.recv_bytes())]
        answers.sort(key=lambda answer: answer[0])  # stable: one device's outputs keep their order
        for _, number, message, payload in answers:
            yield Output(number, message, payload)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _portions(deliveries: Iterable[Delivery]) -> Iterator[list[Delivery]]:
    portion: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        portion.append(delivery)
        size += len(delivery.message)
        if size >= _PORTION_BYTES or len(portion) >= _PORTION_MESSAGES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _work(pipe: Connection, encoded_plan: bytes) -> None:
    plan = msgspec.msgpack.decode(encoded_plan, type=Plan)
    task = plan.task()
    devices = LocalDevices(())
    commands: queue.Queue[bytes | None] = queue.Queue()
    # The pipe is emptied while answers are written: else both ends could wait for each other.
    threading.Thread(target=_listen, args=(pipe, commands), daemon=True).start()
    while (encoded := commands.get()) is not None:
        command = _decode_command(encoded)
        if isinstance(command, _Order):
            devices = plan.devices(task, command.round_number, command.numbers)
            pipe.send_bytes(_encode(list(devices.advertise())))
            continue
        answers: list[_Answer] = []
        for place, number, message, now_s in command.items:
            for output in devices.deliver([Delivery(number, message, now_s)]):
                answers.append((place, output.number, output.message, output.payload))
        pipe.send_bytes(_encode(answers))


def _listen(pipe: Connection, commands: queue.Queue[bytes | None]) -> None:
    while True:
        try:
            commands.put(pipe.recv_bytes())
        except EOFError:
            commands.put(None)
            return
