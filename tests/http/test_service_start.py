"""A task that starts from another task's model: to evaluate it, or to go on."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import sqlalchemy as sa

from aggregator.store import models
from aggregator.store.schema import tasks, versions
from aggregator.store.tasks import insert_version
from dp.contracts import BudgetSpec, TaskSpec, TrainingSpec
from secagg.manifest import BaseModel
from tests.kits.service import served, spec
from tests.kits.tasks import adapter

TRAINED = spec(
    task="trained",
    algorithm="fedavg",
    segments=(),
    base_model=BaseModel(name="m", fingerprint=bytes(32)),
    adapter=adapter(),
)


def evaluation(**changes) -> TaskSpec:
    fields = {
        "task": "measured",
        "algorithm": "evaluation",
        "start_from": "trained",
        "cohort": TRAINED.cohort,
        "budget": BudgetSpec(max_epsilon=None, releases_max=1),
        "training": TrainingSpec(weight_unit=10),
    }
    return TaskSpec(**{**fields, **changes})


async def _advance(server, vector):
    core = server.service.core
    stored = models.store(core.blobs, "trained", 1, vector)
    async with core.database.write() as connection:
        await insert_version(connection, "trained", 1, stored, None, 0.0, leaf_index=1)
        await connection.execute(
            sa.update(tasks).where(tasks.c.task == "trained").values(version=1)
        )


async def test_version_0_is_the_present_model_of_the_named_task(tmp_path):
    async with served(tmp_path, TRAINED) as server:
        vector = np.arange(64, dtype=np.float32)
        await _advance(server, vector)
        status, _ = await server.operator("POST", "/tasks", evaluation())
        assert status == 200
        core = server.service.core
        async with core.database.read() as connection:
            digest = await connection.scalar(
                sa.select(versions.c.digest).where(versions.c.task == "measured")
            )
        assert np.array_equal(models.load(core.blobs, bytes.fromhex(digest)), vector)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start_from": "nobody"}, (404, "not-found")),
        (
            {"adapter": msgspec.structs.replace(adapter(), seed=bytes(31) + b"\1")},
            (409, "start-mismatch"),
        ),
    ],
)
async def test_a_start_that_does_not_fit_is_refused(tmp_path, changes, expected):
    async with served(tmp_path, TRAINED) as server:
        status, problem = await server.operator("POST", "/tasks", evaluation(**changes))
        assert (status, problem["reason"]) == expected
