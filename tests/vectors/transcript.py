"""Whole exchanges, recorded. Sealing is injected: what HPKE drew is frozen in the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from secagg import client, messages, sealing, server
from secagg.manifest import manifest_digest
from secagg.simulation import (
    EPOCH_S,
    Device,
    Drop,
    Hooks,
    SeededBytes,
    SimulatedTask,
    make_devices,
    make_task,
    run_cohort,
)
from secagg.tools import Tools

CLIENTS, LENGTH, SLICE, BITS, SEED = 4, 7, 4, 21, 2026
MANIFEST = b"the bytes of a manifest, as sent"
NAMES: dict[str, dict[int, Drop]] = {
    "complete": {},
    "dropped-before-upload": {1: Drop.ANNOUNCE},
    "noise-taken-off": {},
}
REMOVABLE_DROPS = {"noise-taken-off": (1,)}


def seal_name(public_key: bytes, info: bytes, plaintext: bytes) -> str:
    """Names one seal of a run, so that a replay finds the one that was made then."""
    name = hashlib.sha256()
    for part in (public_key, info, plaintext):
        name.update(len(part).to_bytes(8, "little") + part)
    return name.hexdigest()


def inputs() -> list[np.ndarray]:
    return [np.arange(LENGTH, dtype=np.int64) * (number + 1) - 9 for number in range(CLIENTS)]


def task(removable_drops: tuple[int, ...] = ()) -> SimulatedTask:
    """A simulated task under the digest of ``MANIFEST``: the protocol reads no more of a
    manifest's bytes, so fields that are added to manifests leave the vectors as they are."""
    made = make_task(
        CLIENTS,
        LENGTH,
        seed=SEED,
        ring_bits=BITS,
        slice_length=SLICE,
        survivors_min=3,
        removable_drops=removable_drops,
    )
    named = manifest_digest(MANIFEST)
    return replace(
        made,
        server=replace(made.server, manifest_digest=named),
        devices=tuple(replace(config, manifest_digest=named) for config in made.devices),
    )


def record(name: str, seals: Mapping[str, str]) -> dict[str, Any]:
    """Run the exchange; ``seals`` are those of an earlier run, by :func:`seal_name`."""
    shown, used = task(REMOVABLE_DROPS.get(name, ())), dict(seals)
    made: dict[str, str] = {}

    def seal(public_key: bytes, info: bytes, plaintext: bytes) -> bytes:
        named = seal_name(public_key, info, plaintext)
        found = used.get(named)
        sealed = bytes.fromhex(found) if found else sealing.hpke_seal(public_key, info, plaintext)
        made[named] = sealed.hex()
        return sealed

    said: list[dict[str, Any]] = []
    payloads: dict[int, bytes] = {}
    devices = _devices(shown, seal, NAMES[name])
    secrets = [device.state for device in devices]
    assert all(isinstance(state, client.Advertised) for state in secrets)

    def up(number: int, message: bytes) -> list[bytes]:
        said.append(_line("up", number, message))
        return [message]

    def down(number: int, message: bytes) -> list[bytes]:
        said.append(_line("down", number, message))
        return [message]

    def vector(number: int, payload: bytes) -> bytes:
        payloads[number] = payload
        return payload

    result = run_cohort(
        shown,
        inputs(),
        devices=devices,
        cohort=SeededBytes(SEED, "cohort")(32),
        hooks=Hooks(upward=up, downward=down, vector=vector),
    )
    assert isinstance(result.state, server.Released)
    assert result.total is not None
    return {
        "task": shown.manifest.task,
        "manifest": MANIFEST.hex(),
        "task_key": shown.manifest.task_key.hex(),
        "partner_key": shown.manifest.partner_keys[0].hex(),
        "now_s": EPOCH_S,
        "ring_bits": BITS,
        "slice_length": SLICE,
        "adverts": [device.advert.hex() for device in devices],
        "devices": [
            {
                "identity_seed": config.identity.reveal().hex(),
                "mask_secret": state.mask_secret.reveal().hex(),
                "self_seed": state.self_seed.reveal().hex(),
                "channel_secret": state.channel_secret.reveal().hex(),
                "input": vector.tolist(),
            }
            for config, state, vector in zip(shown.devices, secrets, inputs(), strict=True)
        ],
        "messages": said,
        "payloads": {str(number): payload.hex() for number, payload in sorted(payloads.items())},
        "survivors": list(result.survivors),
        "sum": result.total.tolist(),
        "seals": dict(sorted(made.items())),
    }


def _devices(shown: SimulatedTask, seal: Any, drops: dict[int, Drop]) -> list[Device]:
    devices = make_devices(shown, inputs(), drops=drops, seed=SEED)
    for device in devices:
        device.tools = Tools(random_bytes=device.tools.random_bytes, seal=seal)
    return devices


def _line(direction: str, number: int, message: bytes) -> dict[str, Any]:
    kind = type(messages.peek(message, *messages.KINDS)[0]).__name__
    return {"way": direction, "device": number, "kind": kind, "signed": message.hex()}
