"""The README's own path, from ``serve`` to a release, with its task file and its policy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from client_sdk import Client, PrivacyPolicy, RunResult, TrainingJob
from dp.example_sum import ExampleSum
from secagg_cli.demo.service import Service
from secagg_cli.processes import Children
from tests.kits.cli_service import enrolled, invoke
from tests.kits.readme import blocks, readme_policy, readme_spec


class Gradients:
    """Three made-up gradients, clipped one by one, each in its turn."""

    schedules_examples = True

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        total = ExampleSum(job.manifest, os.urandom)
        for number in job.places(3):
            total.add(np.full(job.manifest.segments[0].length, 0.01 * (number + 1)))
        return {"gradient": total.total}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Children() as children:
        running = Service(tmp_path_factory.mktemp("service") / "server", children)
        running.start()
        yield running


@pytest.fixture(scope="module")
def bundles(service: Service, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The operator knows a partner and has made the README's task; the partner's devices."""
    folder = tmp_path_factory.mktemp("operator")
    key = str(folder / "partner.key")
    invoke(service, "partner", "add", "clinic", "--key-file", key)
    (file,) = blocks("toml")
    (folder / "task.toml").write_text(file)
    created = invoke(service, "task", "create", str(folder / "task.toml"), "--model", "tiny")
    assert created["task"] == "support-bot"
    assert not [warning for warning in created["warnings"] if "corrupt" in warning]
    return enrolled(service, key, folder / "bundles", readme_spec().cohort.size_max)


async def test_devices_join_at_the_first_try_and_a_noisy_sum_is_released(
    service: Service, bundles: list[Path], tmp_path: Path
) -> None:
    def join(number: int, policy: PrivacyPolicy) -> asyncio.Task[RunResult]:
        client = Client.from_bundle(
            bundles[number], policy=policy, state_dir=tmp_path / f"{number}"
        )
        return asyncio.create_task(client.run_async(Gradients(), task="support-bot", rounds=1))

    half = len(bundles) // 2
    runs = [join(n, readme_policy() if n < half else PrivacyPolicy()) for n in range(len(bundles))]
    results = await asyncio.gather(*runs)
    assert [result.refusals for result in results] == [()] * len(bundles)
    assert all(len(result.releases) == 1 for result in results)
    assert all(0 < result.epsilon < 8 for result in results)
    ledger = (f"{service.url}/ledger", "--key", service.verifier)
    audit = await asyncio.to_thread(invoke, None, "audit", "verify", *ledger)
    assert (audit["verified"], audit["releases"]) == (True, 1)


@pytest.mark.parametrize("words", [(), ("--allow-model", "smollm2")])
def test_join_trains_no_model_that_nobody_here_named(
    bundles: list[Path], words: tuple[str, ...], tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    joining = ("join", str(bundles[0]), "--data", str(data), "--task", "support-bot")
    error = invoke(None, *joining, "--state", str(tmp_path / "state"), *words, code=1)["error"]
    assert error["reason"] == "model-not-allowed"
    assert "--model" in error["remedy"]
    assert "'tiny'" in error["message"]
