"""What a cohort of three really says, recorded, and seeded ways to damage it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import msgspec
import numpy as np

from secagg import access_token, client, messages, ring, server
from secagg.keys import signing_key
from secagg.manifest import encode_manifest
from secagg.messages import KINDS, Message
from secagg.secret import Secret
from secagg.simulation import (
    EPOCH_S,
    Aggregator,
    Device,
    Hooks,
    LocalDevices,
    SimulatedTask,
    drive,
    make_task,
    seeded_tools,
)

AUDIENCE = b"a" * 32
CLIENTS, LENGTH = 3, 5


class Recorder(Device):
    """A device that keeps (state before, event)."""

    trace: list[tuple[client.State, client.Event]]

    def _drive(self, event):
        self.trace = [*getattr(self, "trace", []), (self.state, event)]
        return super()._drive(event)


class RecordingAggregator(Aggregator):
    """An aggregator that keeps (state before, event) of what devices sent."""

    trace: list[tuple[server.State, server.Event]]

    def _step(self, event, number=-1):
        if isinstance(event, server.Received):
            self.trace = [*getattr(self, "trace", []), (self.state, event)]
        super()._step(event, number)


@dataclass
class Wire:
    """One recorded exchange.

    Attributes:
        signed: one signed message per kind, with the ctx that it is bound to.
        vectors: packed vectors.
        to_device, to_aggregator: (state before, message) of the real machines.
    """

    task: SimulatedTask
    device: Recorder
    aggregator: RecordingAggregator
    signed: dict[type[Message], tuple[bytes, bytes]] = field(default_factory=dict)
    vectors: list[bytes] = field(default_factory=list)
    snapshots: dict[str, bytes] = field(default_factory=dict)

    @property
    def ctx(self) -> bytes:
        return self.aggregator.state.ctx

    @property
    def manifest(self) -> bytes:
        return encode_manifest(self.task.manifest)

    @property
    def payload_length(self) -> int:
        return ring.payload_length(LENGTH, self.task.manifest.encoding.slice_length)

    def token(self) -> str:
        config = self.device.config
        return access_token.issue_access_token(
            config.identity, config.certificate, AUDIENCE, EPOCH_S
        )


@cache
def recorded(ring_bits: int = 21) -> Wire:
    task = make_task(CLIENTS, LENGTH, slice_length=4, survivors_min=3, ring_bits=ring_bits)
    encoding = task.manifest.encoding
    payload = ring.with_checks(
        np.arange(LENGTH, dtype=np.int64), encoding.ring_bits, encoding.slice_length
    )
    devices = [
        Recorder(
            config,
            number,
            model_digest=task.model_digest,
            vector=lambda: payload,
            tools=seeded_tools(0, number),
        )
        for number, config in enumerate(task.devices)
    ]
    said: list[bytes] = [device.advert for device in devices]
    vectors: list[bytes] = []

    def keep(_: int, message: bytes) -> list[bytes]:
        said.append(message)
        return [message]

    def keep_vector(_: int, packed: bytes) -> bytes:
        vectors.append(packed)
        return packed

    pool = LocalDevices(devices)
    aggregator = RecordingAggregator(
        task,
        pool.advertise(),
        cohort=bytes(32),
        attempt=0,
        hooks=Hooks(upward=keep, downward=keep, vector=keep_vector),
    )
    result = drive(aggregator, pool)
    assert isinstance(result.state, server.Released)
    wire = Wire(task, devices[0], aggregator, vectors=vectors)
    for message in said:
        kind = type(messages.peek(message, *KINDS)[0])
        ctx = b"" if kind in (messages.Advert, messages.Roster) else wire.ctx
        wire.signed.setdefault(kind, (message, ctx))
    deals, _ = messages.peek(wire.signed[messages.Deals][0], messages.Deals)
    wire.signed[messages.Deal] = deals.deals[0], wire.ctx
    identity, task_key = signing_key(devices[0].config.identity), signing_key(task.server.task_key)
    complaint = messages.Complaint(wire.ctx, 0, (1,), deals.deals[:1], bytes(32))
    wire.signed[messages.Complaint] = messages.sign(complaint, wire.ctx, identity), wire.ctx
    refusal = messages.Refusal(wire.ctx, 0, "partner-unknown", 1)
    wire.signed[messages.Refusal] = messages.sign(refusal, wire.ctx, identity), wire.ctx
    abort = messages.Abort(bytes(32), "too-few-survivors")
    wire.signed[messages.Abort] = messages.sign(abort, wire.ctx, task_key), wire.ctx
    assert set(wire.signed) == set(KINDS), "every kind of message has a sample"
    for state, _ in devices[0].trace:
        wire.snapshots.setdefault(state.phase, client.snapshot(state))
    wire.snapshots[devices[0].state.phase] = client.snapshot(devices[0].state)
    return wire


# -- damage ----------------------------------------------------------------------------------------

_HOSTILE = (  # MessagePack that promises more than there is, nests, or has an odd type
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\x7f\xff\xff\xff\x01",
    b"\x91" * 2_000,
    b"\x81" * 2_000,
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xa2\xc3\x28",
    b"\xc0",
    b"\xc1",
)
_VALUES = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64 - 1,
    -(2**63),
    b"",
    b"\x00",
    b"x" * 31,
    b"x" * 33,
    bytes(32),
    b"\xff" * 64,
    bytes(1216),
    "",
    "\u0000",
    "task",
    None,
    True,
    1.5,
    [],
    [[]],
    [0, 0],
    [1, 0],
    [b""],
    [[0, b""]],
    [[0, 0, b""]],
    {},
)


def damage(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One random change to the bytes, or none of the bytes at all."""
    at = rng.randrange(len(data) + 1)
    match rng.randrange(9):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.randbytes(rng.randrange(1, 9)) + data[at:]
        case 2:
            return data[:at] + data[at + rng.randrange(1, 40) :]
        case 3:
            return data[:at] + rng.choice(_HOSTILE) + data[at + 1 :]
        case 4:
            other = rng.choice(others)
            return data[:at] + other[rng.randrange(len(other) + 1) :]
        case 5:
            return rng.randbytes(rng.randrange(200))
        case 6:
            return data[:2] + rng.randbytes(rng.randrange(200))
        case 7:
            return data[:2] + rng.choice(_HOSTILE) + data[2:]
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    """Every truncation, and every single byte changed: its lowest, its highest and all bits turned,
    in inputs of more than 2,000 bytes one bit, each in its turn."""
    for at in range(len(data)):
        yield data[:at]
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF) if len(data) <= 2_000 else (1 << at % 8,):
            yield data[:at] + bytes((data[at] ^ flip,)) + data[at + 1 :]


def change_fields(rng: random.Random, body: bytes) -> bytes:
    """Well-formed MessagePack in which one to three values are others."""
    tree = msgspec.msgpack.decode(body)
    for _ in range(rng.randrange(1, 4)):
        node = tree
        while children := _children(node):
            place = rng.choice(children)
            value = node[place]
            if _children(value) and rng.randrange(4):
                node = value
                continue
            _change_one(rng, node, place, value)
            break
    return msgspec.msgpack.encode(tree)


def _children(node: object) -> list[object]:
    if isinstance(node, dict):
        return sorted(node)
    return list(range(len(node))) if isinstance(node, list) else []


def _change_one(rng: random.Random, node, place, value: object) -> None:
    roll = rng.randrange(4)
    if roll == 0 and isinstance(value, bytes) and value:
        changed = bytearray(value)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        node[place] = bytes(changed)
    elif roll == 1 and isinstance(value, int):
        node[place] = min(max(value + rng.choice((-1, 1)), -(2**63)), 2**64 - 1)
    elif roll == 2 and isinstance(node, list):
        node.insert(place, deepcopy(value))
    elif roll == 2:
        del node[place]
    else:
        node[place] = deepcopy(rng.choice(_VALUES))


def resigned(signed: bytes, ctx: bytes, key: Secret, rng: random.Random) -> bytes:
    """The same kind of message with other contents, properly signed by a peer that lies."""
    _, envelope = messages.peek(signed, *KINDS)
    frame = envelope.frame[:2] + change_fields(rng, envelope.frame[2:])
    kind = next(kind for kind, (number, _) in KINDS.items() if number == frame[1])
    signer = signing_key(key)
    signature = signer.sign(messages.signature_input(kind, ctx, frame)).signature
    return msgspec.msgpack.encode(messages.Signed(frame, bytes(signer.verify_key), signature))
