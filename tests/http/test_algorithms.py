"""Every algorithm and every form of LoRA of the demo, with the demo's settings, over HTTP."""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path

import msgspec
import numpy as np
import pytest

from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.evaluation import evaluate
from client_sdk.training.lora import base_fingerprint
from client_sdk.training.trainer import LoraTrainer
from secagg_cli.demo.choice import names, resolve
from secagg_cli.demo.kills import plan_kills
from secagg_cli.demo.spec import DemoOptions, task_spec
from secagg_cli.models.corpus import load_clients
from tests.kits.tasks import seeded
from tests.kits.tiny_training import tiny
from tests.kits.world import TASK, World

DEVICES, ROUNDS = 3, 2
ROWS = {"zeroth-order": 24}  # of a device, where an example takes many passes; others have all


@pytest.mark.parametrize(
    ("name", "adaptive_clip"), [*((name, False) for name in names()), ("fedsgd", True)]
)
async def test_the_demo_s_task_of_every_name_trains_over_http(
    tmp_path: Path, name: str, adaptive_clip: bool
) -> None:
    options = DemoOptions(
        "tiny", DEVICES, ROUNDS, 0.0, device_noise=0.0, folder=None, adaptive_clip=adaptive_clip
    )
    options = resolve(name, None, options)
    model, tokenizer = tiny()
    plan, _ = plan_kills(DEVICES, 0.0)
    spec = msgspec.structs.replace(task_spec(options, plan, model), task=TASK)
    data = load_clients(DEVICES)
    async with World(tmp_path, spec) as world:
        trainers = [
            LoraTrainer(
                copy.deepcopy(model),
                tokenizer,
                c.train[: ROWS.get(name)],
                threads=1,
                random_bytes=seeded(n),
            )
            for n, c in enumerate(data)
        ]
        results = await asyncio.gather(
            *(
                world.device(f"d{n}").run_async(trainer, task=TASK, rounds=ROUNDS)
                for n, trainer in enumerate(trainers)
            )
        )
        vector = await world.sums()
        view = await world.view()
        audit = world.audit()
        manifest = world.manifest()
    assert [len(result.releases) for result in results] == [ROUNDS] * DEVICES
    assert [entry["outcome"] for entry in view["releases"]] == ["released"] * ROUNDS
    assert (audit.verified, audit.releases) == (True, ROUNDS)
    if adaptive_clip:  # gradients of the tiny model are longer than the first clip
        assert 1.0 < view["releases"][0]["metrics"]["clip"] < view["releases"][1]["metrics"]["clip"]
    heldout = [pair for client in data for pair in client.heldout]
    before = evaluate(model, tokenizer, heldout)
    adapted = AdaptedModel(model, manifest, base_fingerprint(model))
    adapted.load(vector)
    after = evaluate(adapted.model, tokenizer, heldout)
    assert np.isfinite(after)
    assert np.linalg.norm(vector) > 0
    if options.privacy != "distributed":  # there noise shares of every run are others
        assert after < before
