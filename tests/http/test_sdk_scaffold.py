"""SCAFFOLD over HTTP: the cure arrives, and a device's state follows the receipts exactly."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import pytest
import safetensors.numpy
from aiohttp import web

from client_sdk import RunResult, TransportError
from client_sdk.rounds.scaffold_control import DeviceControl
from client_sdk.state import journal
from client_sdk.state.durable_files import write_durably
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.contracts import DeadlineSpec
from secagg.http_api import Offer
from secagg.manifest import encode_manifest, manifest_digest
from tests.kits.quadratics import LENGTH, OPTIMUM, Quadratic, fixed_point_of_fedavg, quadratic_spec
from tests.kits.world import QUICK, TASK, TOKEN, Killed, NoContributor, World, kill_at

DEVICES = 4


async def run(world: World, number: int, rounds: int = 1) -> RunResult:
    device = world.device(f"d{number}")
    return await device.run_async(Quadratic(number), task=TASK, rounds=rounds)


async def model(world: World) -> dict[str, np.ndarray]:
    """The published model file's tensors."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"{world.url}/v1/operator/tasks/{TASK}/model"
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(url) as answer,
    ):
        return safetensors.numpy.load(await answer.read())


def own(world: World, number: int) -> np.ndarray:
    """c_k as it lies in a device's state folder."""
    folder = world.folder / f"d{number}"
    manifest = world.manifest()
    journal = Journal(folder, open_storage_key(folder))
    return DeviceControl(journal, manifest, manifest_digest(encode_manifest(manifest))).own


async def is_mean(world: World) -> bool:
    """Whether the server's c is the mean of the devices' c_k."""
    control = (await model(world))["control"]
    mean = np.mean([own(world, n) for n in range(DEVICES)], 0)
    return bool(np.abs(control).max() > 0.01) and bool(np.allclose(control, mean, atol=1e-6))


async def test_it_reaches_the_minimum_that_fedavg_misses(tmp_path: Path) -> None:
    found = {}
    for name in ("fedavg", "scaffold"):
        async with World(tmp_path / name, quadratic_spec(name)) as world:
            await asyncio.gather(*(run(world, n, rounds=9) for n in range(DEVICES)))
            found[name] = await world.sums()
            assert world.audit().verified
    drift = np.abs(fixed_point_of_fedavg() - OPTIMUM).max()
    assert np.abs(found["fedavg"] - OPTIMUM).max() > 0.9 * drift > 0.3
    assert np.abs(found["scaffold"] - OPTIMUM).max() < 0.2 * drift


STEPS = ["trained", "reported", "checked", "masking", "uploading", "confirmed", "unmasked"]


@pytest.mark.parametrize("kind", [*STEPS, "released"])
async def test_a_device_killed_at_any_step_keeps_its_place_in_the_mean(
    tmp_path: Path, kind: str
) -> None:
    """The second round trains from c_k: had it moved twice or not at all, c would not fit."""
    async with World(tmp_path, quadratic_spec("scaffold")) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at(kind)).run_async(Quadratic(0), task=TASK, rounds=1)
        if kind != "released":
            await world.device("d0").run_async(NoContributor(), task=TASK, rounds=1)
        await asyncio.gather(*others)
        assert await is_mean(world)
        await asyncio.gather(*(run(world, n) for n in range(DEVICES)))
        assert await is_mean(world)


async def test_a_dropout_moves_nothing_of_its_own(tmp_path: Path) -> None:
    spec = quadratic_spec("scaffold", deadlines=DeadlineSpec(report_s=60.0, masked_input_s=2.0))
    async with World(tmp_path, spec) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploading")).run_async(
                Quadratic(0), task=TASK, rounds=1
            )
        await asyncio.gather(*others)
        left_out = await world.device("d0").resume_async()
        assert (left_out.aborted, left_out.releases) == (1, ())
        assert not own(world, 0).any()
        assert own(world, 1).any()
        assert await is_mean(world)


@pytest.mark.parametrize("kind", ["confirmed", "unmasked"])
async def test_a_lost_receipt_is_found_in_the_ledger(tmp_path: Path, kind: str) -> None:
    """The server forgot the session, but the sum holds this device: so must its c_k."""
    spec = quadratic_spec("scaffold", deadlines=DeadlineSpec(report_s=60.0, unmask_s=2.0))
    async with World(tmp_path, spec) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await world.device("d0", kill_at(kind)).run_async(Quadratic(0), task=TASK, rounds=1)
        await asyncio.gather(*others)

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            if not request.path.startswith("/v1/sessions/"):
                return None
            return web.Response(status=404, body=b'{"reason":"not-found","message":"Gone."}')

        world.gate = gate
        assert (await world.device("d0").resume_async()).aborted == 1
        assert not own(world, 0).any()
        assert not await is_mean(world)
        world.gate = None
        await asyncio.gather(*(run(world, n) for n in range(DEVICES)))
        assert await is_mean(world)


async def test_the_servers_control_survives_its_restart(tmp_path: Path) -> None:
    async with World(tmp_path, quadratic_spec("scaffold")) as world:
        await asyncio.gather(*(run(world, n) for n in range(DEVICES)))
        before = await model(world)
        await world.restart()
        after = await model(world)
        assert before["control"].any()
        for name in ("vector", "control"):
            np.testing.assert_array_equal(before[name], after[name])
        await asyncio.gather(*(run(world, n) for n in range(DEVICES)))
        assert await is_mean(world)


@pytest.mark.parametrize(
    ("algorithm", "tensors"),
    [
        ("scaffold", {"vector": LENGTH}),
        ("scaffold", {"vector": LENGTH, "control": LENGTH - 1}),
        ("scaffold", {"vector": LENGTH, "control": LENGTH, "more": 1}),
        ("fedavg", {"vector": LENGTH, "control": LENGTH}),
        ("fedavg", {"other": LENGTH}),
    ],
)
async def test_a_model_file_with_other_tensors_is_refused(
    tmp_path: Path, algorithm: str, tensors: dict[str, int]
) -> None:
    """Well signed and of the right digest, but not what the algorithm needs."""
    data = safetensors.numpy.save({n: np.zeros(d, np.float32) for n, d in tensors.items()})
    async with World(tmp_path, quadratic_spec(algorithm)) as world:

        async def gate(request: web.Request, body: bytes) -> bytes | web.Response | None:
            if request.path.startswith("/v1/models/"):
                return web.Response(body=data)
            if request.path.endswith("/offer"):
                offer = msgspec.json.decode(body, type=Offer)
                forged = msgspec.structs.replace(
                    offer.model, digest=hashlib.sha256(data).digest(), size_bytes=len(data)
                )
                return msgspec.json.encode(msgspec.structs.replace(offer, model=forged))
            return None

        world.gate = gate
        with pytest.raises(TransportError) as refused:
            await world.device("d0", transport=QUICK).run_async(Quadratic(0), task=TASK)
        assert refused.value.reason == "model-malformed"


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2])
async def test_a_device_that_dies_at_a_write_of_its_control_variate_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    """Write 1 is what will be added (before the vector is), write 2 the receipt's addition."""
    writes = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal writes
        mine = path.parent == tmp_path / "d0" and path.name.startswith("control-")
        writes += mine
        due = mine and writes == number
        if due and place == "before":
            raise Killed
        write_durably(path, data)
        if due:
            raise Killed

    monkeypatch.setattr(journal, "write_durably", write)
    async with World(tmp_path, quadratic_spec("scaffold")) as world:
        others = [asyncio.create_task(run(world, n)) for n in range(1, DEVICES)]
        with pytest.raises(Killed):
            await run(world, 0)
        result = await world.device("d0").run_async(NoContributor(), task=TASK, rounds=1)
        assert len(result.releases) == 1
        await asyncio.gather(*others)
        assert await is_mean(world)
        await asyncio.gather(*(run(world, n) for n in range(DEVICES)))
        assert await is_mean(world)
