"""Adaptive clipping over HTTP: the clip moves with releases alone, and devices check each step."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from aiohttp import web

from client_sdk import LedgerRefusal, RunResult
from client_sdk.contribution import TrainingJob
from dp.contracts import AdaptiveClipSpec, TaskSpec
from dp.example_sum import ExampleSum
from dp.noise.adaptive_clip import next_clip
from secagg.errors import RemoteProtocolError
from secagg.http_api import Offer
from tests.kits.quadratics import LENGTH, quadratic_spec
from tests.kits.world import TASK, Killed, World, kill_at

DEVICES = 4


class Constant:
    """A device whose update always has the same direction, and the length 2^number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.clips: list[float | None] = []

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.clips.append(job.clip)
        delta = np.zeros(LENGTH)
        delta[self.number] = 2.0**self.number
        return {"delta": delta}


class Gradients(Constant):
    """Distributed noise: four examples of lengths 2^number, 2^(number + 1), ..."""

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        self.clips.append(job.clip)
        batch = ExampleSum(job.manifest, os.urandom, job.clip)
        for power in range(4):
            gradient = np.zeros(LENGTH)
            gradient[self.number] = 2.0 ** (self.number + power)
            batch.add(gradient)
        return batch.values()


def adaptive_spec(**changes: Any) -> TaskSpec:
    """Four devices under noise of about 12 bits: the clip wanders, far from its range's ends."""
    terms: dict[str, Any] = {
        "device_noise_multiplier": 3.0,
        "adaptive_clip": AdaptiveClipSpec(learning_rate=0.1, clip_min=1e-4, clip_max=1e4),
        "budget": msgspec.structs.replace(quadratic_spec("fedavg").budget, releases_max=3),
    }
    return quadratic_spec("fedavg", **{**terms, **changes})


async def run(world: World, contributor: Constant, rounds: int = 1) -> RunResult:
    device = world.device(f"d{contributor.number}")
    return await device.run_async(contributor, task=TASK, rounds=rounds)


async def clip_of(world: World) -> float:
    """Of the model that the service publishes."""
    assert world._http is not None
    async with world._http.get(f"{world.url}/v1/operator/tasks/{TASK}/model") as response:
        return float(safetensors.numpy.load(await response.read())["clip"][0])


def recorded(world: World) -> list[tuple[float, int]]:
    result = world.audit()
    assert result.problems == ()
    moves = [release.entry.clip for release in result.tasks[0].releases]
    return [(move.clip, move.below_units) for move in moves]


@pytest.mark.parametrize("level", ["device", "example"])
async def test_each_release_moves_the_clip_as_its_sum_says(tmp_path: Path, level: str) -> None:
    spec, kind = adaptive_spec(), Constant
    if level == "example":
        spec = adaptive_spec(
            privacy="distributed",
            device_noise_multiplier=0.0,
            noise_multiplier=3.0,
            examples_max=16,
            training={"local_steps": 1, "local_learning_rate": 1.0, "batch_size": 4},
        )
        spec = msgspec.structs.replace(spec, algorithm="fedsgd")
        kind = Gradients
    contributors = [kind(number) for number in range(DEVICES)]
    async with World(tmp_path, spec) as world:
        results = await asyncio.gather(*(run(world, c, rounds=3) for c in contributors))
        assert [len(result.releases) for result in results] == [3] * DEVICES
        moves, manifest = recorded(world), world.manifest()
        clips = [1.0]
        for clip, below in moves:
            assert clip == next_clip(manifest, clips[-1], below)
            clips.append(clip)
        assert len(set(clips)) == 4
        assert [c.clips for c in contributors] == [clips[:3]] * DEVICES
        assert await clip_of(world) == clips[3]
        view = await world.view()
        assert [release["metrics"]["clip"] for release in view["releases"]] == clips[1:]
        per = manifest.segments[1].scale
        noise = 6 * (manifest.noise.share_variance * DEVICES) ** 0.5
        for before, (_, below) in zip(clips, moves, strict=False):
            lengths = [
                2.0 ** (number + power)
                for number in range(DEVICES)
                for power in range(4 if level == "example" else 1)
            ]
            bits = sum(length <= before for length in lengths) - 0.5 * len(lengths)
            assert abs(below - bits * per) < noise + len(lengths)


async def test_a_restart_of_the_service_keeps_the_clip(tmp_path: Path) -> None:
    contributors = [Constant(number) for number in range(DEVICES)]
    async with World(tmp_path, adaptive_spec()) as world:
        await asyncio.gather(*(run(world, c) for c in contributors))
        before = await clip_of(world)
        assert before != 1.0
        await world.restart()
        assert await clip_of(world) == before
        await asyncio.gather(*(run(world, c) for c in contributors))
        assert [c.clips for c in contributors] == [[1.0, before]] * DEVICES
        assert recorded(world)[0][0] == before


async def test_a_device_killed_after_training_sends_what_it_scaled_for_its_version(
    tmp_path: Path,
) -> None:
    contributors = [Constant(number) for number in range(DEVICES)]
    async with World(tmp_path, adaptive_spec()) as world:
        others = [asyncio.create_task(run(world, c)) for c in contributors[1:]]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("trained")).run_async(
                contributors[0], task=TASK, rounds=1
            )
        await run(world, contributors[0])
        await asyncio.gather(*others)
        assert contributors[0].clips == [1.0]  # trained once
        recorded(world)


def lie_about(value: float) -> Any:
    """Whatever model is served holds this clip, under a digest that fits."""
    state: dict[str, bytes] = {}

    def forged(body: bytes) -> bytes:
        tensors = safetensors.numpy.load(body)
        tensors["clip"] = np.array([value])
        return safetensors.numpy.save(tensors)

    async def gate(request: web.Request, body: bytes) -> bytes | web.Response | None:
        if request.path.endswith("/offer"):
            offer = msgspec.json.decode(body, type=Offer)
            file = state["file"]
            model = msgspec.structs.replace(
                offer.model, digest=hashlib.sha256(file).digest(), size_bytes=len(file)
            )
            return msgspec.json.encode(msgspec.structs.replace(offer, model=model))
        if request.path.startswith("/v1/models/"):
            return web.Response(body=state["file"])
        return None

    return gate, forged, state


@pytest.mark.parametrize(
    ("clip", "reason"),
    [
        (2.0, "clip-mismatch"),
        (1e-9, "clip-out-of-range"),
        (1e9, "clip-out-of-range"),
        (float("nan"), "clip-out-of-range"),
        (float("inf"), "clip-out-of-range"),
    ],
)
async def test_a_device_refuses_a_first_clip_that_is_not_the_manifests(
    tmp_path: Path, clip: float, reason: str
) -> None:
    async with World(tmp_path, adaptive_spec()) as world:
        gate, forged, state = lie_about(clip)
        assert world._http is not None
        async with world._http.get(f"{world.url}/v1/operator/tasks/{TASK}/model") as response:
            state["file"] = forged(await response.read())
        world.gate = gate
        contributor = Constant(0)
        with pytest.raises(RemoteProtocolError) as refused:
            await run(world, contributor)
        assert refused.value.reason == reason
        assert contributor.clips == []


async def test_a_device_refuses_a_later_clip_that_no_release_made(tmp_path: Path) -> None:
    """The model is the release's but for the clip: its digest is in no record."""
    async with World(tmp_path, adaptive_spec()) as world:
        await asyncio.gather(*(run(world, Constant(number)) for number in range(DEVICES)))
        gate, forged, state = lie_about(2.0)
        assert world._http is not None
        async with world._http.get(f"{world.url}/v1/operator/tasks/{TASK}/model") as response:
            state["file"] = forged(await response.read())
        world.gate = gate
        with pytest.raises(LedgerRefusal) as missing:
            await run(world, Constant(0))
        assert missing.value.reason == "model-not-in-ledger"


async def test_a_device_refuses_a_model_whose_record_names_another_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that writes one clip into the model and another into the ledger."""
    from aggregator.cohorts import releasing

    honest = releasing.entry_of

    def lying(*arguments: Any) -> Any:
        entry = honest(*arguments)
        move = msgspec.structs.replace(entry.clip, clip=1.25)
        return msgspec.structs.replace(entry, clip=move)

    monkeypatch.setattr(releasing, "entry_of", lying)
    async with World(tmp_path, adaptive_spec()) as world:
        await asyncio.gather(*(run(world, Constant(number)) for number in range(DEVICES)))
        contributor = Constant(0)
        with pytest.raises(RemoteProtocolError) as refused:
            await run(world, contributor)
        assert refused.value.reason == "clip-mismatch"
        assert contributor.clips == []
        assert {problem.reason for problem in world.audit().problems} == {"clip-mismatch"}


@pytest.mark.parametrize(("released", "claimed"), [(0, 3), (1, 0)])
async def test_a_device_refuses_a_clip_under_the_number_of_another_version(
    tmp_path: Path, released: int, claimed: int
) -> None:
    """Neither version 0 passed off as a release's, nor a release's as version 0."""
    async with World(tmp_path, adaptive_spec()) as world:
        for _ in range(released):
            await asyncio.gather(*(run(world, Constant(number)) for number in range(DEVICES)))

        async def gate(request: web.Request, body: bytes) -> bytes | None:
            if not request.path.endswith("/offer"):
                return None
            offer = msgspec.json.decode(body, type=Offer)
            model = msgspec.structs.replace(offer.model, version=claimed)
            return msgspec.json.encode(msgspec.structs.replace(offer, model=model))

        world.gate = gate
        contributor = Constant(9)
        with pytest.raises(RemoteProtocolError) as refused:
            await run(world, contributor)
        assert refused.value.reason == "clip-mismatch"
        assert contributor.clips == []
