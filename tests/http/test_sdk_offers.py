"""Offers over HTTP: weak tasks and forged manifests are refused before any training."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import nacl.signing
import pytest
from aiohttp import web

from aggregator.http.app import SERVICE
from client_sdk import Event, PrivacyPolicy, TransportError
from dp.contracts import TaskSpec
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.http_api import Offer
from secagg.manifest import Manifest, decode_manifest, encode_manifest
from secagg.secret import Secret
from secagg_cli.join.trainer import LazyTrainer
from tests.kits.quadratics import Quadratic, quadratic_spec
from tests.kits.world import QUICK, TASK, Killed, OneHot, World, plain_spec

IMPATIENT = replace(QUICK, patience_s=0.2, poll_s=0.2)


def noisy_spec(**changes: Any) -> TaskSpec:
    return plain_spec(device_noise_multiplier=4.0, **changes)


async def test_a_task_without_noise_is_told_before_its_charge_and_in_the_result(
    tmp_path: Path,
) -> None:
    """No finite total exists over all tasks, and the task that makes it so has a name."""
    async with World(tmp_path, plain_spec()) as world:
        told: dict[str, list[Event]] = {f"d{n}": [] for n in range(4)}
        results = await asyncio.gather(
            *(
                world.device(f"d{n}", told[f"d{n}"].append).run_async(
                    OneHot(n), task=TASK, rounds=1
                )
                for n in range(4)
            )
        )
        for events, result in zip(told.values(), results, strict=True):
            kinds = [event.kind for event in events]
            first = events[kinds.index("checked-in")]
            assert kinds.index("checked-in") < kinds.index("masking")
            assert (first.detail["no_finite_total"], first.detail["others"]) == (TASK, 0.0)
            assert '"no_finite_total": "' in first.to_json()
            assert result.epsilon == math.inf
            assert [(total.epsilon, total.unbounded) for total in result.totals] == [
                (math.inf, (TASK,))
            ] * 2
    async with World(tmp_path / "noisy", noisy_spec()) as world:
        events: list[Event] = []

        def leave(event: Event) -> None:
            events.append(event)
            if event.kind == "training":
                raise Killed

        with pytest.raises(Killed):
            await world.device("d0", leave).run_async(OneHot(0), task=TASK, rounds=1)
        assert "no_finite_total" not in events[0].detail


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (PrivacyPolicy(min_cohort=10), "cohort-too-small"),
        (PrivacyPolicy(min_cohort=2, require="local"), "privacy-mode"),
        (PrivacyPolicy(min_cohort=2, max_epsilon=0.01), "epsilon-too-large"),
        (PrivacyPolicy(min_cohort=2, max_delta=1e-9), "delta-too-large"),
        (PrivacyPolicy(min_cohort=2, max_upload_bytes=10), "upload-too-large"),
        (PrivacyPolicy(min_cohort=2), "corrupt-too-few"),
        (PrivacyPolicy(min_cohort=2, min_corrupt=0, max_download_bytes=10), "download-too-large"),
        (PrivacyPolicy(min_cohort=2, min_corrupt=0, min_step_s=31.0), "step-too-short"),
        (PrivacyPolicy(min_cohort=2, min_corrupt=0, max_hold_s=239.0), "held-too-long"),
        (PrivacyPolicy(min_cohort=2, min_corrupt=0, may_train=lambda: False), "not-now"),
        (PrivacyPolicy(min_cohort=2, partner_keys=frozenset((bytes(32),))), "partner-unknown"),
    ],
)
async def test_a_refusal_comes_before_any_training_and_tells_the_server_nothing(
    tmp_path: Path, policy: PrivacyPolicy, reason: str
) -> None:
    async with World(tmp_path, noisy_spec()) as world:
        posts: list[str] = []

        async def gate(request: web.Request, body: bytes) -> None:
            if request.method != "GET":
                posts.append(request.path)

        world.gate = gate
        events: list[Event] = []
        contributor = OneHot(0)
        device = world.device("d0", events.append, policy=policy)
        result = await device.run_async(contributor, task=TASK, rounds=1)
        assert [refusal.reason for refusal in result.refusals] == [reason]
        assert all(refusal.remedy for refusal in result.refusals)
        assert [(e.kind, e.detail.get("reason")) for e in events] == [("refused", reason)]
        assert (contributor.jobs, posts) == ([], [])
        assert not device.has_pending()


async def test_a_task_without_a_model_is_refused_by_a_trainer_before_an_advert(
    tmp_path: Path,
) -> None:
    """Noise would hide the failure, and zeros would be charged, cohort after cohort."""
    told: list[str] = []
    async with World(tmp_path, noisy_spec()) as world:
        device = world.device("d0", lambda event: told.append(event.kind))
        result = await device.run_async(LazyTrainer([("a", "b")], "tiny"), task=TASK)
        assert [refusal.reason for refusal in result.refusals] == ["task-without-model"]
        assert told[-1] == "refused"
        assert "reported" not in told
        assert not device.has_pending()


def change_offer(world: World, change: Callable[[Offer], Offer]) -> None:
    async def gate(request: web.Request, body: bytes) -> bytes | None:
        if not request.path.endswith("/offer"):
            return None
        return msgspec.json.encode(change(msgspec.json.decode(body, type=Offer)))

    world.gate = gate


def signed(manifest: Manifest, seed: Secret) -> dict[str, Any]:
    encoded = encode_manifest(manifest)
    signature = nacl.signing.SigningKey(seed.reveal()).sign(encode_parts("manifest", encoded))
    return {"manifest": encoded, "manifest_signature": bytes(signature.signature)}


async def refused_offer(
    tmp_path: Path, change: Callable[[World, Offer], Offer], spec: TaskSpec | None = None
) -> str:
    async with World(tmp_path, spec or plain_spec()) as world:
        change_offer(world, lambda offer: change(world, offer))
        contributor = OneHot(0)
        with pytest.raises((RemoteProtocolError, TransportError)) as caught:
            await world.device("d0", transport=IMPATIENT).run_async(contributor, task=TASK)
        assert contributor.jobs == []
        return caught.value.reason


async def test_a_manifest_by_another_key_is_refused(tmp_path: Path) -> None:
    """Even one that names its own key: what counts is the key from the bundle."""

    def forge(_: World, offer: Offer) -> Offer:
        seed = Secret(bytes(32))
        key = bytes(nacl.signing.SigningKey(bytes(32)).verify_key)
        weaker = msgspec.structs.replace(decode_manifest(offer.manifest), task_key=key)
        return msgspec.structs.replace(offer, **signed(weaker, seed))

    assert await refused_offer(tmp_path, forge) == "manifest-signature"


async def test_a_manifest_changed_by_one_byte_is_refused(tmp_path: Path) -> None:
    def flip(_: World, offer: Offer) -> Offer:
        changed = bytearray(offer.manifest)
        changed[-1] ^= 1
        return msgspec.structs.replace(offer, manifest=bytes(changed))

    assert await refused_offer(tmp_path, flip) == "manifest-signature"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "other"}, "manifest-task"),
        ({"task_key": bytes(32)}, "manifest-key"),
        ({"ledger_verifier": "other.test+00000000+AA=="}, "manifest-ledger"),
        ({"suite": "ROT13"}, "manifest-version"),
    ],
)
async def test_a_genuine_manifest_for_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    def swap(world: World, offer: Offer) -> Offer:
        manifest = msgspec.structs.replace(decode_manifest(offer.manifest), **changes)
        task_seed = world.app[SERVICE].core.keys.task
        return msgspec.structs.replace(offer, **signed(manifest, task_seed))

    assert await refused_offer(tmp_path, swap) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": bytes(31)}, "offer-malformed"),
        ({"version": -1}, "response-malformed"),
        ({"size_bytes": 1 << 40}, "model-size"),
        ({"size_bytes": 0}, "model-size"),
        ({"digest": bytes(32)}, "not-found"),
        ({"opened_at": -1.0}, "offer-malformed"),
        ({"opened_at": 1e300}, "offer-malformed"),
    ],
)
async def test_an_offer_of_an_impossible_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    def swap(_: World, offer: Offer) -> Offer:
        return msgspec.structs.replace(offer, model=msgspec.structs.replace(offer.model, **changes))

    assert await refused_offer(tmp_path, swap, quadratic_spec("fedavg")) == reason


@pytest.mark.parametrize("size_change", [-16, 0, 16])
async def test_another_model_than_offered_is_refused_and_thrown_away(
    tmp_path: Path, size_change: int
) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        size = (await world.get_offer("d0")).model.size_bytes + size_change

        async def gate(request: web.Request, body: bytes) -> bytes | None:
            return b"x" * size if request.path.startswith("/v1/models/") else None

        world.gate = gate
        with pytest.raises(TransportError) as caught:
            await world.device("d0", transport=IMPATIENT).run_async(Quadratic(0), task=TASK)
        assert caught.value.reason == ("model-size" if size_change else "model-digest")
