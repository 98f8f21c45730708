"""100,000 seeded inputs, whole and byte by byte, into everything that parses foreign bytes.

The promise is one sentence: they parse and verify, or the one typed error comes out. It comes out
within ``CPU_S`` seconds for all of them and ``MEMORY_BYTES`` beyond ``MEMORY_FACTOR`` times the
input for each of them.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import pytest

from secagg import access_token, adverts, client, keys, messages, ring, server
from secagg.errors import LocalProtocolError, RemoteProtocolError, SecaggError
from secagg.manifest import decode_manifest
from secagg.messages import KINDS, Certificate, Message
from secagg.simulation import EPOCH_S, seeded_tools
from tests.kits.wire_samples import (
    AUDIENCE,
    Wire,
    byte_by_byte,
    change_fields,
    damage,
    recorded,
    resigned,
)

SEED = 20_260_301
WHOLE = 100_000  # inputs over all targets
BEHIND_SIGNATURES = 12_000  # inputs per machine that a lying peer signed properly
CPU_S = 60.0  # of one core, for each test of this page; idle, all of them together take 20
MEMORY_FACTOR, MEMORY_BYTES = 16, 192 * 1024


@dataclass(frozen=True)
class Target:
    """Something that parses: a sound input and the one error that may come out."""

    name: str
    sample: bytes
    parse: Callable[[bytes], object]
    error: type[SecaggError] = RemoteProtocolError


def frame_of(signed: bytes) -> bytes:
    return messages.peek(signed, *KINDS)[1].frame


def _message_targets(wire: Wire) -> Iterator[Target]:
    for kind, (signed, ctx) in wire.signed.items():
        name = kind.__name__

        def parse_frame(data: bytes) -> object:
            return messages.decode(data, *KINDS)

        def parse_signed(data: bytes, kind: type[Message] = kind, ctx: bytes = ctx) -> object:
            return messages.verify(data, ctx, kind)

        yield Target(f"{name} frame", frame_of(signed), parse_frame)
        yield Target(f"{name} signed", signed, parse_signed)


def _certificate(wire: Wire) -> Target:
    """A certificate has no frame of its own: it comes inside an advert or a token."""
    partners = frozenset(wire.task.manifest.partner_keys)

    def parse(data: bytes) -> None:
        try:
            certificate = msgspec.msgpack.decode(data, type=Certificate)
        except (msgspec.MsgspecError, ValueError):
            return  # the carriers' decoders are targets of their own
        keys.verify_certificate(certificate, partners, EPOCH_S)

    return Target("certificate", msgspec.msgpack.encode(wire.device.config.certificate), parse)


def targets(wire: Wire) -> list[Target]:
    partners = frozenset(wire.task.manifest.partner_keys)
    bits, length = wire.task.manifest.encoding.ring_bits, wire.payload_length

    def token(data: bytes) -> bytes:
        return access_token.verify_access_token(data.decode("latin-1"), AUDIENCE, partners, EPOCH_S)

    def advert(data: bytes) -> object:
        config = wire.task.server
        return adverts.check_advert(
            data, config.manifest, config.manifest_digest, partners, EPOCH_S
        )

    found = [
        *_message_targets(wire),
        Target("advert at report-in", wire.signed[messages.Advert][0], advert),
        Target("manifest", wire.manifest, decode_manifest),
        Target("access token", wire.token().encode(), token),
        _certificate(wire),
        Target("packed vector", wire.vectors[0], lambda data: ring.unpack(data, length, bits)),
        Target("masked lanes", wire.vectors[0], lambda data: ring.unpack(data, len(data), 8)),
    ]
    # A snapshot comes from the device's own disk, so it is the driver's error, not a peer's.
    for phase, snapshot in wire.snapshots.items():
        found.append(Target(f"snapshot {phase}", snapshot, client.restore, LocalProtocolError))
    return found


class Watch:
    """Counts outcomes, CPU time and the peak of memory of single inputs."""

    def __init__(self) -> None:
        self.accepted = self.refused = 0
        self.reasons: set[str] = set()

    def __enter__(self) -> Watch:
        tracemalloc.start()
        self.started_s = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent_s = time.process_time() - self.started_s
        tracemalloc.stop()

    def feed(self, target: Target, data: bytes) -> None:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        try:
            target.parse(data)
        except target.error as error:
            self.refused += 1
            self.reasons.add(error.reason)
        except Exception as error:
            pytest.fail(f"{target.name}: {error!r} from {data[:200].hex()}")
        else:
            self.accepted += 1
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak <= MEMORY_FACTOR * len(data) + MEMORY_BYTES, (target.name, len(data), peak)


def test_the_samples_are_sound() -> None:
    """Damage to something that never parsed would show nothing."""
    for target in targets(recorded()):
        target.parse(target.sample)


def test_100_000_damaged_and_random_inputs_parse_or_are_refused() -> None:
    wire, rng = recorded(), random.Random(SEED)
    aims = targets(wire)
    samples = [target.sample for target in aims]
    with Watch() as watch:
        for number in range(WHOLE):
            target = aims[number % len(aims)]
            watch.feed(target, damage(rng, target.sample, samples))
    assert watch.accepted + watch.refused == WHOLE
    assert watch.refused > WHOLE * 0.8
    assert {"frame-malformed", "frame-truncated", "signature-invalid"} <= watch.reasons
    assert watch.spent_s < CPU_S


def test_every_truncation_and_every_changed_byte_parses_or_is_refused() -> None:
    """One sample per kind; what is signed, sealed or certified is never accepted changed."""
    bound = ("signed", "access token", "certificate", "advert at")
    with Watch() as watch:
        for target in targets(recorded()):
            before = watch.accepted
            for data in byte_by_byte(target.sample):
                watch.feed(target, data)
            if any(word in target.name for word in bound) and target.name != "certificate":
                assert watch.accepted == before, target.name
    assert watch.accepted + watch.refused > 120_000
    assert watch.spent_s < CPU_S


def test_an_aggregator_that_signs_nonsense_gets_a_typed_answer_from_a_device() -> None:
    """Past the signature: authentic messages with other contents, in every phase."""
    wire, rng = recorded(), random.Random(SEED + 1)
    received = [(s, e) for s, e in wire.device.trace if isinstance(e, client.Received)]
    key = wire.task.server.task_key
    ended: set[str] = set()

    def target(state: client.State, event: client.Received) -> Target:
        def parse(data: bytes) -> None:
            after, _ = client.step(
                wire.device.config, state, client.Received(data, event.now_s), seeded_tools(1)
            )
            if isinstance(after, client.Failed):
                ended.add(after.reason)

        return Target(f"device {state.phase}", event.message, parse)

    aims = [target(state, event) for state, event in received]
    kinds = [type(messages.peek(event.message, *KINDS)[0]) for _, event in received]
    with Watch() as watch:
        for number in range(BEHIND_SIGNATURES):
            at = number % len(aims)
            ctx = b"" if kinds[at] is messages.Roster else wire.ctx
            watch.feed(aims[at], resigned(aims[at].sample, ctx, key, rng))
    assert watch.accepted + watch.refused == BEHIND_SIGNATURES
    assert {"roster-malformed", "cohort-size", "inbox-dealer", "confirmations-too-few"} <= ended
    assert watch.spent_s < CPU_S


def test_devices_that_sign_nonsense_get_a_typed_answer_from_the_aggregator() -> None:
    wire, rng = recorded(), random.Random(SEED + 2)
    identities = {c.certificate.identity_key: c.identity for c in wire.task.devices}
    traced = wire.aggregator.trace

    def target(state: server.State, event: server.Received) -> Target:
        def parse(data: bytes) -> None:
            server.step(wire.task.server, state, server.Received(event.index, data, event.now_s))

        return Target(f"aggregator {state.phase}", event.message, parse)

    aims = [target(state, event) for state, event in traced]
    with Watch() as watch:
        for number in range(BEHIND_SIGNATURES):
            at = number % len(aims)
            state, event = traced[at]
            key = identities[state.roster[event.index].identity_key]
            watch.feed(aims[at], resigned(event.message, wire.ctx, key, rng))
    assert watch.accepted + watch.refused == BEHIND_SIGNATURES
    assert {"message-context", "frame-malformed", "deals-count"} <= watch.reasons
    assert watch.spent_s < CPU_S


def test_certified_nonsense_in_an_advert_is_refused_by_name() -> None:
    """A device with a genuine certificate advertises anything at all."""
    wire, rng = recorded(), random.Random(SEED + 3)
    config, identity = wire.task.server, wire.device.config.identity
    partners = frozenset(config.manifest.partner_keys)
    signed = wire.device.advert

    def parse(data: bytes) -> object:
        return adverts.check_advert(
            data, config.manifest, config.manifest_digest, partners, EPOCH_S
        )

    with Watch() as watch:
        for _ in range(BEHIND_SIGNATURES):
            watch.feed(Target("advert", signed, parse), resigned(signed, b"", identity, rng))
    assert {"advert-malformed", "advert-manifest", "certificate-invalid"} <= watch.reasons
    assert watch.spent_s < CPU_S


def test_changed_fields_of_a_manifest_parse_or_are_refused() -> None:
    wire, rng = recorded(), random.Random(SEED + 4)
    target = Target("manifest", wire.manifest, decode_manifest)
    with Watch() as watch:
        for _ in range(BEHIND_SIGNATURES):
            watch.feed(target, change_fields(rng, wire.manifest))
    assert watch.refused > 0
    assert watch.spent_s < CPU_S
