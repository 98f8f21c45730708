"""How many examples a device has, or drew, is in nothing that leaves it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from aggregator.http.app import SERVICE, build_admin_app
from client_sdk import PrivacyPolicy
from client_sdk.contribution import TrainingJob, zero_contribution
from dp.contracts import BudgetSpec, CohortSpec, TaskSpec
from dp.example_sum import ExampleSum
from tests.kits.device import fedsgd_spec
from tests.kits.world import TASK, World

NOISY = PrivacyPolicy(min_cohort=3, min_corrupt=0, max_epsilon=1e6, max_total_epsilon=1e6)
SIZES = (0, 1, 60, 800, 7_654_321)  # of the data; the last one's training fails
DRAWN = (0, 1, 41, 64, 0)  # of the batch


def spec() -> TaskSpec:
    return fedsgd_spec(
        task=TASK,
        cohort=CohortSpec(size_min=5, size_max=5, survivors_min=4),
        budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=10),
    )


class Examples:
    """Sums as many clipped examples as it is told to, out of so many."""

    def __init__(self, size: int, drawn: int) -> None:
        self.size, self.drawn = size, drawn
        self.rng = np.random.default_rng(size)

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        if self.size > 1_000:
            raise MemoryError(f"{self.size} examples")
        if self.drawn == 0:
            return zero_contribution(job.manifest)
        total = ExampleSum(job.manifest, self.rng.bytes)
        for _ in range(self.drawn):
            total.add(self.rng.normal(size=job.manifest.data_length))
        return total.values()


def form(path: str) -> str:
    """A path without the names in it that are new each time."""
    return re.sub(r"[0-9a-f]{16,}|(?<=/)\d+", "*", path)


async def test_requests_have_the_same_form_whatever_a_device_has_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same messages of the same lengths, and no figure in what the service keeps or shows.

    Of five devices each seals to two: with an even number lengths would differ by a device's place
    in the roster, which is public.
    """
    sent: dict[str, Counter[tuple[str, str, int | None]]] = {}

    async def record(request: web.Request, _: bytes) -> None:
        who = request.headers.get("Authorization", "")
        if request.method != "GET" and "/operator/" not in request.path:
            seen = sent.setdefault(who, Counter())
            seen[request.method, form(request.path), request.content_length] += 1

    async with World(tmp_path, spec()) as world:
        world.gate = record
        await asyncio.gather(
            *(
                world.device(f"d{n}", policy=NOISY).run_async(Examples(*pair), task=TASK, rounds=2)
                for n, pair in enumerate(zip(SIZES, DRAWN, strict=True))
            )
        )
        assert len(sent) == len(SIZES)
        assert len({tuple(sorted(map(str, seen.items()))) for seen in sent.values()}) == 1
        assert sum(next(iter(sent.values())).values()) >= 12
        shown = str(await world.view()) + await admin_pages(world)
        kept = b"".join(
            file.read_bytes() for file in (tmp_path / "service").rglob("*") if file.is_file()
        )
        assert world.audit().verified
    shown += "".join(capsys.readouterr())
    assert "released" in shown
    assert b"released" in kept
    assert not re.search(r"\b7,?654,?321\b", shown)
    assert b"7654321" not in kept
    assert b"MemoryError" not in kept


async def admin_pages(world: World) -> str:
    runner = web.AppRunner(build_admin_app(world.app[SERVICE]))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pages = ""
    async with aiohttp.ClientSession() as http:
        for path in ("/", f"/tasks/{TASK}", "/metrics"):
            async with http.get(f"http://127.0.0.1:{runner.addresses[0][1]}{path}") as answer:
                assert answer.status == 200, path
                pages += await answer.text()
    await runner.cleanup()
    return pages
