"""A task with its devices, made from a seed: real keys, certificates and a real manifest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from secagg import keys, sealing
from secagg.client import ClientConfig
from secagg.limits import PROTOCOL_VERSION, SEED_BYTES, SLICE_LENGTH, SUITE
from secagg.manifest import (
    Budget,
    CohortRules,
    Deadlines,
    Encoding,
    Manifest,
    Noise,
    Segment,
    encode_manifest,
    manifest_digest,
)
from secagg.secret import Secret
from secagg.server import ServerConfig
from secagg.tools import Tools

EPOCH_S = 1_800_000_000  # when simulated time starts, Unix seconds
_CERTIFIED_S = 365 * 24 * 3600
_STEP_S = 60.0  # every deadline of the simulated task


class SeededBytes:
    """Random bytes that are a function of a seed and a label, for the simulator only."""

    def __init__(self, seed: int, *labels: object) -> None:
        self._prefix = repr((seed, *labels)).encode()
        self._calls = 0

    def __call__(self, count: int) -> bytes:
        self._calls += 1
        return hashlib.shake_256(b"%s %d" % (self._prefix, self._calls)).digest(count)

    def below(self, bound: int) -> int:
        """An integer in 0 .. bound - 1."""
        return int.from_bytes(self(16), "little") % bound


def seeded_tools(seed: int, *labels: object) -> Tools:
    """Tools of one device: everything from the seed except sealing, which is the real one."""
    return Tools(random_bytes=SeededBytes(seed, "tools", *labels), seal=sealing.hpke_seal)


@dataclass(frozen=True)
class SimulatedTask:
    """Both sides' configuration. Device numbers are enrolment numbers, not roster indices."""

    server: ServerConfig
    devices: tuple[ClientConfig, ...]
    model_digest: bytes

    @property
    def manifest(self) -> Manifest:
        return self.server.manifest


def _noise(removable_drops: tuple[int, ...]) -> Noise:
    return Noise(
        mechanism="skellam", share_variance=1, honest_min=1, removable_drops=removable_drops
    )


def make_task(
    clients: int,
    length: int,
    *,
    seed: int = 0,
    ring_bits: int = 32,
    slice_length: int = SLICE_LENGTH,
    size_min: int | None = None,
    survivors_min: int = 2,
    corrupt_max: int = 0,
    own_minimum: int = 2,
    degree: int = 0,
    threshold: int = 0,
    versions_back: int = 0,
    model_min: int = 0,
    removable_drops: tuple[int, ...] = (),
) -> SimulatedTask:
    """A task over ``length`` plain coordinates for ``clients`` enrolled devices.

    Args:
        size_min: the manifest's smallest cohort; by default all of ``clients``.
        own_minimum: each device's own ``survivors_min``.
        degree, threshold: of a sparse graph; 0: complete.
        removable_drops: levels of noise whose seeds are shared; simulated devices draw no noise.
    """
    random = SeededBytes(seed, "task")
    partner, task_key = random(SEED_BYTES), random(SEED_BYTES)
    partner_key = keys.identity_public_key(Secret(partner))
    manifest = Manifest(
        protocol=PROTOCOL_VERSION,
        suite=SUITE,
        task="simulated",
        created_at=EPOCH_S,
        algorithm="sum",
        task_key=keys.identity_public_key(Secret(task_key)),
        ledger_verifier="",
        partner_keys=(partner_key,),
        cohort=CohortRules(
            size_min=clients if size_min is None else size_min,
            size_max=clients,
            survivors_min=survivors_min,
            corrupt_max=corrupt_max,
            silent_max=0,
            degree=degree,
            threshold=threshold,
            versions_back=versions_back,
            model_min=model_min,
        ),
        deadlines=Deadlines(
            report_s=_STEP_S,
            share_s=_STEP_S,
            check_s=_STEP_S,
            masked_input_s=_STEP_S,
            confirm_s=_STEP_S,
            unmask_s=_STEP_S,
        ),
        segments=(Segment(name="vector", length=length, clip=0.0, scale=1, clip_units=0),),
        encoding=Encoding(ring_bits=ring_bits, slice_length=slice_length, wrap_log2=-40.0),
        noise=_noise(removable_drops) if removable_drops else None,
        example_privacy=None,
        device_privacy=None,
        budget=Budget(max_epsilon=None, delta=0.0, releases_max=1_000_000),
        report_slot_s=0.0,
        base_model=None,
        adapter=None,
        training=None,
    )
    digest = manifest_digest(encode_manifest(manifest))
    devices = []
    for _ in range(clients):
        identity = random(SEED_BYTES)
        identity_key = keys.identity_public_key(Secret(identity))
        devices.append(
            ClientConfig(
                identity=Secret(identity),
                certificate=keys.issue_certificate(
                    Secret(partner), identity_key, EPOCH_S + _CERTIFIED_S
                ),
                manifest=manifest,
                manifest_digest=digest,
                survivors_min=own_minimum,
                partner_keys=frozenset({partner_key}),
            )
        )
    return SimulatedTask(
        server=ServerConfig(manifest, digest, Secret(task_key)),
        devices=tuple(devices),
        model_digest=random(32),
    )
