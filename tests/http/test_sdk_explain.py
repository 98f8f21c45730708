"""``client.explain`` with a real aggregator: the checks of a check-in; nothing is fetched."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from client_sdk import LedgerRefusal, PeriodLimits, StateError
from client_sdk.accounts.data_door import DataChoice
from dp.contracts import BudgetSpec
from secagg.errors import RemoteProtocolError
from secagg.http_api import Offer
from secagg.manifest import decode_manifest, encode_manifest
from tests.kits.world import POLICY, TASK, OneHot, World, plain_spec, run_all

SPEC = plain_spec(
    4, device_noise_multiplier=8.0, budget=BudgetSpec(max_epsilon=None, releases_max=4)
)


async def test_what_is_said_before_and_after_a_round(tmp_path: Path) -> None:
    asked: list[str] = []

    async def note(request: web.Request, body: bytes) -> None:
        if request.path.startswith("/v1/"):
            asked.append(request.path)

    async with World(tmp_path, SPEC) as world:
        world.gate = note
        before = await world.device("d0").explain_async(TASK)
        assert set(asked) == {f"/v1/tasks/{TASK}/offer"}
        world.gate = None
        await run_all(world)
        after = await world.device("d0").explain_async(TASK)
    assert (before.charges, before.releases, before.refusals) == (0, 0, ())
    assert (after.charges, after.releases) == (1, 1)
    one = {cost.unit: cost for cost in after.costs}["device"]
    assert one.spent == {cost.unit: cost for cost in before.costs}["device"].after > 0.0
    assert "charged once in this task" in after.text()


async def test_a_manifest_that_the_aggregator_did_not_sign_is_not_explained(
    tmp_path: Path,
) -> None:
    async def lie(request: web.Request, body: bytes) -> bytes | None:
        if not request.path.endswith("/offer"):
            return None
        offer = msgspec.json.decode(body, type=Offer)
        manifest = decode_manifest(offer.manifest)
        kinder = msgspec.structs.replace(
            manifest, cohort=msgspec.structs.replace(manifest.cohort, survivors_min=4)
        )
        return msgspec.json.encode(msgspec.structs.replace(offer, manifest=encode_manifest(kinder)))

    async with World(tmp_path, SPEC) as world:
        world.gate = lie
        with pytest.raises(RemoteProtocolError, match="manifest-signature"):
            await world.device("d0").explain_async(TASK)


async def test_a_model_that_the_ledger_does_not_know_is_not_explained(tmp_path: Path) -> None:
    async def lie(request: web.Request, body: bytes) -> bytes | None:
        if not request.path.endswith("/offer"):
            return None
        offer = msgspec.json.decode(body, type=Offer)
        model = msgspec.structs.replace(offer.model, digest=b"m" * 32)
        return msgspec.json.encode(msgspec.structs.replace(offer, model=model))

    async with World(tmp_path, SPEC) as world:
        world.gate = lie
        with pytest.raises(LedgerRefusal, match="model-not-in-ledger"):
            await world.device("d0").explain_async(TASK)


async def test_limits_of_a_period_and_of_a_contributor_are_among_the_refusals(
    tmp_path: Path,
) -> None:
    policy = replace(POLICY, per_period=PeriodLimits(max_bytes=1_000_000), max_memory_bytes=1 << 30)
    async with World(tmp_path, SPEC) as world:
        found = await world.device("d0", policy=policy).explain_async(TASK, OneHot(0))
        assert [refusal.reason for refusal in found.refusals] == ["memory-undeclared"]
        tight = replace(policy, per_period=PeriodLimits(max_bytes=100_000))
        found = await world.device("d0", policy=tight).explain_async(TASK)
        assert [refusal.reason for refusal in found.refusals] == ["bytes-of-period"]


async def test_a_device_that_is_forgotten_counts_for_the_next_one(tmp_path: Path) -> None:
    data = DataChoice("journal", tmp_path / "registry")
    async with World(tmp_path, SPEC) as world:
        await run_all(world, data=data)
        forgotten = await asyncio.to_thread(world.device("d0", data=data).forget)
        assert (forgotten.account, forgotten.charges, forgotten.kept) == ("data", {TASK: 1}, ())
        assert not (tmp_path / "d0").exists()
        successor = world.device("d9", data=data)
        found = await successor.explain_async(TASK)
        assert (found.charges, found.counts, found.refusals) == (1, "data", ())
        await asyncio.to_thread(successor.forget)
        with pytest.raises(StateError, match="forgotten"):
            await successor.explain_async(TASK)
