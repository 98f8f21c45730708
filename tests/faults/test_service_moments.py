"""The server optimiser's moments are part of the task: durable, and moved only by a release."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import sqlalchemy as sa

from aggregator.store import models
from aggregator.store.schema import versions
from dp.contracts import BudgetSpec, TrainingSpec
from dp.encoding import encode
from secagg import client
from tests.kits.service import TASK, Device, current_sum, finished, run, served, spec
from tests.kits.tasks import adapter

LENGTH = 64
RATE, TAU = 0.5, 0.1
UNIT = 2.0**-14  # of the encoding: a mean is off by less than one


class Averaging(Device):
    """Sends ``value`` as its delta, with weight 1."""

    async def perform(self, effect: client.Effect) -> None:
        if not isinstance(effect, client.ProvideVector):
            return await super().perform(effect)
        lanes = encode(
            self.config.manifest,
            {"delta": self.value, "weight": np.ones(1), "loss": np.zeros(1)},
            rotation_seed=effect.ctx,
            random_bytes=self.tools.random_bytes,
        )
        return await self.feed(client.VectorReady(lanes))


def task():
    return spec(
        algorithm="fedadam",
        segments=(),
        adapter=adapter(),
        training=TrainingSpec(server_learning_rate=RATE, server_tau=TAU),
        budget=BudgetSpec(max_epsilon=None, releases_max=4),
    )


def deltas(seed: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).normal(size=(4, LENGTH)))


def fleet(server, seed, **changes) -> list[Device]:
    return [Averaging(server, n, value, **changes) for n, value in enumerate(deltas(seed))]


async def release(server, seed) -> None:
    results = await asyncio.gather(*(device.run() for device in fleet(server, seed)))
    assert finished(results) == 4


async def moments(server) -> dict[str, np.ndarray]:
    core = server.service.core
    async with core.database.read() as connection:
        digest = await connection.scalar(
            sa.select(versions.c.optimiser_digest)
            .where(versions.c.task == TASK)
            .order_by(versions.c.version.desc())
            .limit(1)
        )
    return models.load_optimiser(core.blobs, bytes.fromhex(digest) if digest else None)


def adam(seeds) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, m, v after these releases, in plain float64."""
    x, m, v = np.zeros(LENGTH), np.zeros(LENGTH), np.full(LENGTH, TAU**2)
    for seed in seeds:
        mean = np.mean(deltas(seed), axis=0)
        m = 0.9 * m + 0.1 * mean
        v = 0.99 * v + 0.01 * mean**2
        x = x + RATE * m / (np.sqrt(v) + TAU)
    return x, m, v


async def test_moments_survive_restarts_and_an_aborted_cohort_does_not_move_them(tmp_path):
    async with served(tmp_path, task()) as server:
        assert await moments(server) == {}
        await release(server, 1)
        await server.restart()
        before = await moments(server)
        assert sorted(before) == ["momentum", "noise", "second"]

        lost = fleet(server, 2)
        for device in lost[:2]:
            device.stop_before = "vector"
        await run(lost)
        view = await server.view()
        assert [r["outcome"] for r in view["releases"]] == ["released", "charged"]
        after = await moments(server)
        assert all((after[name] == before[name]).all() for name in before)

        await server.restart()
        await release(server, 3)
        x, m, v = adam([1, 3])  # the charged cohort's deltas are nowhere in it
        found = await moments(server)
        assert found["momentum"] == pytest.approx(m, abs=0.19 * UNIT)
        assert found["second"] == pytest.approx(v, abs=2e-5)
        assert await current_sum(server) == pytest.approx(x, abs=1e-3)
