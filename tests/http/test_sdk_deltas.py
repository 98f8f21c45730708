"""Models as deltas over HTTP: by the byte, by the version, and never without the digest."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from aggregator.http.app import SERVICE
from aggregator.store import deltas
from client_sdk import PrivacyPolicy
from client_sdk.contribution import TrainingJob, zero_contribution
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, TaskSpec
from secagg.access_token import issue_access_token
from secagg.manifest import Adapter, TensorShape
from secagg.secret import Secret
from tests.kits.device import fedsgd_spec
from tests.kits.world import TASK, World

NOISY = PrivacyPolicy(min_cohort=3, min_corrupt=0, max_epsilon=1e6, max_total_epsilon=1e6)
DEVICES = 4
ADAPTER = Adapter(
    kind="ffa-lora",
    rank=4,
    alpha=4,
    target_modules=("q_proj",),
    seed=bytes(32),
    trainable=(TensorShape(name="q.lora_B", rows=300, columns=4),),
    frozen=(TensorShape(name="q.lora_A", rows=4, columns=300),),
)
WHOLE = 4 * 1_200


def noisy_spec() -> TaskSpec:
    """Zeros and noise: every release moves all of 1,200 numbers."""
    return fedsgd_spec(
        task=TASK,
        adapter=ADAPTER,
        cohort=CohortSpec(size_min=DEVICES, size_max=DEVICES, survivors_min=3),
        deadlines=DeadlineSpec(report_s=60.0),
        budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=10),
    )


class Zeros:
    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        return zero_contribution(job.manifest)


def authorised(world: World) -> dict[str, str]:
    bundle = world.bundle("d0")
    token = issue_access_token(
        Secret(bundle.identity_seed), bundle.certificate, bundle.task_key, int(time.time())
    )
    return {"Authorization": f"Bearer {token}"}


def fetched(world: World) -> dict[str, int]:
    """How often devices asked for whole models, and for deltas."""
    found = {"models": 0, "deltas": 0}

    async def gate(request: web.Request, body: bytes) -> None:
        kind = request.path.split("/")[2]
        if kind in found and request.method == "GET":
            found[kind] += 1

    world.gate = gate
    return found


async def test_models_come_as_deltas_and_missed_versions_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, noisy_spec()) as world:
        asked, events = fetched(world), []
        first = (await world.get_offer("d0")).model.digest.hex()
        results = await asyncio.gather(
            *(
                world.device(f"d{n}", events.append, policy=NOISY).run_async(
                    Zeros(), task=TASK, rounds=2
                )
                for n in range(DEVICES)
            )
        )
        assert [len(result.releases) for result in results] == [2] * DEVICES
        assert asked == {"models": 0, "deltas": 2 * DEVICES}
        assert "delta-refused" not in {event.kind for event in events}
        (held,) = {path.name for path in (tmp_path / "d0" / "models").iterdir()}

        served, blobs = world.app[SERVICE].deltas, world.app[SERVICE].core.blobs
        model = (await world.get_offer("d0")).model.digest.hex()
        from_held = await served.shortest(model, held)
        from_nothing = await served.shortest(model, deltas.NOTHING)
        assert from_held is not None
        assert from_nothing is not None
        assert from_held.size_bytes < from_nothing.size_bytes < WHOLE / 3.5
        assert from_held.size_bytes < WHOLE / 4.5
        for unknown in ("ab" * 32, model):  # no other version of the task
            assert await served.shortest(model, unknown) == from_nothing
        assert await served.shortest(held, first) is None  # no task's present model
        missed = await served.shortest(model, first)
        assert missed is not None
        assert missed.size_bytes <= from_nothing.size_bytes
        monkeypatch.setattr(deltas, "VERSIONS_BACK", 1)
        assert await served.shortest(model, first) == from_nothing  # too long ago

        url, file = f"{world.url}/v1/deltas/{model}/{held}", blobs.get(from_held.name)
        async with aiohttp.ClientSession(headers=authorised(world)) as http:

            async def ask(**headers: str) -> tuple[int, str | None, bytes]:
                async with http.get(url, headers=headers) as answer:
                    assert answer.status in (200, 206)
                    assert answer.headers["ETag"] == f'"{hashlib.sha256(file).hexdigest()}"'
                    ranged = answer.headers.get("Content-Range")
                    return answer.status, ranged, await answer.read()

            tag, last = f'"{from_held.digest}"', len(file) - 1
            assert await ask() == (200, None, file)
            rest = (206, f"bytes 90-{last}/{len(file)}", file[90:])
            assert await ask(**{"Range": "bytes=90-", "If-Range": tag}) == rest
            assert await ask(Range="bytes=90-") == rest
            for range_, of in (("90-", '"another"'), (f"{len(file)}-", tag), ("x", tag)):
                asked = {"Range": f"bytes={range_}", "If-Range": of}
                assert await ask(**asked) == (200, None, file)
            async with http.get(f"{world.url}/v1/deltas/{held}/{model}") as answer:
                assert (answer.status, (await answer.json())["reason"]) == (404, "no-delta")
        async with aiohttp.ClientSession() as http, http.get(url) as answer:
            assert answer.status == 401

        blobs.delete(from_held.name)  # by a replica that knows of a newer version
        served.forget(from_held)
        assert await served.shortest(model, held) == from_held
        assert blobs.exists(from_held.name)
        files = {name[:64] for name in blobs.sizes(deltas.DELTAS)}
        assert files == {model}  # those of the versions before are gone
