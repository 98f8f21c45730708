"""What a device refuses, over HTTP: weak tasks, forged offers, bent ledgers, garbage."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import nacl.signing
import numpy as np
import pytest
import safetensors.numpy
import sqlalchemy as sa
from aiohttp import web

from aggregator.http.app import SERVICE
from aggregator.store.schema import versions
from client_sdk import Event, LedgerRefusal, PrivacyPolicy, StateError, TransportError
from dp.contracts import BudgetSpec, TaskSpec
from dp.tlog.notes import Checkpoint, sign_checkpoint
from secagg.errors import RemoteProtocolError
from secagg.hashing import encode_parts
from secagg.http_api import Mail, Offer
from secagg.manifest import Manifest, decode_manifest, encode_manifest
from secagg.secret import Secret
from secagg_cli.join.trainer import LazyTrainer
from tests.kits.quadratics import LENGTH, Quadratic, quadratic_spec
from tests.kits.world import QUICK, TASK, Killed, OneHot, World, plain_spec

IMPATIENT = replace(QUICK, patience_s=0.2, poll_s=0.2)


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


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


async def refused_offer(tmp_path: Path, change: Callable[[World, Offer], Offer]) -> str:
    async with World(tmp_path, plain_spec()) as world:
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

    assert await refused_offer(tmp_path, swap) == reason


@pytest.mark.parametrize("size_change", [-16, 0, 16])
async def test_another_model_than_offered_is_refused_and_thrown_away(
    tmp_path: Path, size_change: int
) -> None:
    async with World(tmp_path, plain_spec()) as world:
        size = (await world.get_offer("d0")).model.size_bytes + size_change

        async def gate(request: web.Request, body: bytes) -> bytes | None:
            return b"x" * size if request.path.startswith("/v1/models/") else None

        world.gate = gate
        with pytest.raises(TransportError) as caught:
            await world.device("d0", transport=IMPATIENT).run_async(OneHot(0), task=TASK)
        assert caught.value.reason == ("model-size" if size_change else "model-digest")


async def run_all(world: World, devices: int = 4, rounds: int = 1, **first: Any) -> list[Any]:
    return await asyncio.gather(
        *(
            world.device(f"d{n}", **(first if n == 0 else {})).run_async(
                OneHot(n), task=TASK, rounds=rounds
            )
            for n in range(devices)
        ),
        return_exceptions=True,
    )


async def test_a_ledger_that_was_rolled_back_or_forked_is_refused(tmp_path: Path) -> None:
    """After a round the device knows two leaves; a server restored from an old backup has one."""
    async with World(tmp_path, plain_spec()) as world:
        ledger = world.app[SERVICE].ledger
        old = (ledger.folder / "checkpoint").read_bytes()
        results = await run_all(world)
        assert [len(result.releases) for result in results] == [1, 1, 1, 1]

        served = old

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            return web.Response(body=served) if request.path == "/ledger/checkpoint" else None

        world.gate = gate
        contributor = OneHot(0)
        device = world.device("d0", sleep=at_once)
        with pytest.raises(LedgerRefusal) as caught:
            await device.run_async(contributor, task=TASK)
        assert caught.value.reason == "ledger-rolled-back"

        fork = Checkpoint("secagg.local/ledger", 2, bytes(32))
        served = sign_checkpoint(fork, world.app[SERVICE].core.keys.ledger)
        with pytest.raises(LedgerRefusal) as caught:
            await device.run_async(contributor, task=TASK)
        assert caught.value.reason == "ledger-forked"
        assert contributor.jobs == []


async def test_a_receipt_without_its_leaf_is_not_believed(tmp_path: Path) -> None:
    """The server says 'released' and shows a ledger in which nothing is."""
    async with World(tmp_path, plain_spec()) as world:
        old = (world.app[SERVICE].ledger.folder / "checkpoint").read_bytes()

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers["User-Agent"] == "d0"
            return web.Response(body=old) if mine and "checkpoint" in request.path else None

        world.gate = gate
        results = await run_all(world, sleep=at_once, transport=replace(QUICK, user_agent="d0"))
        assert isinstance(results[0], LedgerRefusal)
        assert results[0].reason == "release-not-proven"
        device = world.device("d0")
        assert device.has_pending()
        world.gate = None
        assert len((await device.resume_async()).releases) == 1


@pytest.mark.parametrize("what", ["/offer", "/messages", "/v1/adverts", "/vector", "/ledger/"])
async def test_a_server_that_talks_garbage_is_survived(tmp_path: Path, what: str) -> None:
    """Typed error, pending session kept; the same device ends the round when sense returns."""
    async with World(tmp_path, plain_spec()) as world:

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers["User-Agent"] == "d0"
            return web.Response(body=b"\xff<html>") if mine and what in request.path else None

        world.gate = gate
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        transport = replace(IMPATIENT, user_agent="d0")
        device = world.device("d0", transport=transport, sleep=at_once)
        with pytest.raises((TransportError, LedgerRefusal)) as caught:
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert caught.value.reason in ("response-malformed", "note-malformed")
        world.gate = None
        result = await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
        await asyncio.gather(*others)
        assert len(result.releases) == 1
        assert (await world.sums()).tolist()[:4] == [1.0] * 4


async def test_a_server_that_sends_only_garbage_is_left(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:

        async def gate(request: web.Request, body: bytes) -> bytes | None:
            if request.path.endswith("/messages") and request.method == "GET":
                return msgspec.json.encode(Mail(messages=(bytes(200),) * 10))
            return None

        world.gate = gate
        events: list[Event] = []

        def on_event(event: Event) -> None:
            events.append(event)
            if event.kind == "aborted":
                raise EnoughError

        with pytest.raises(EnoughError):
            await world.device("d0", on_event, transport=replace(QUICK, poll_s=0.05)).run_async(
                OneHot(0), task=TASK, rounds=1
            )
        assert events[-1].detail["reason"] == "server-misbehaves"


class EnoughError(Exception):
    """The test has seen what it waited for."""


async def test_a_session_that_the_server_forgot_is_aborted_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, plain_spec()) as world:
        lost, aborted = True, asyncio.Event()

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            nonlocal lost
            if lost and request.path.endswith("/messages"):
                lost = False
                return web.Response(status=404, body=b'{"reason":"not-found","message":"Gone."}')
            return None

        def on_event(event: Event) -> None:
            if event.kind == "aborted":
                assert event.detail["reason"] == "session-lost"
                aborted.set()

        world.gate = gate
        contributor = OneHot(0)
        first = asyncio.create_task(
            world.device("d0", on_event, transport=replace(QUICK, poll_s=0.1)).run_async(
                contributor, task=TASK, rounds=1
            )
        )
        await aborted.wait()
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        result = await first
        await asyncio.gather(*others)
        assert (result.aborted, len(result.releases), len(contributor.jobs)) == (1, 1, 1)
        assert (await world.sums()).tolist()[:4] == [1.0] * 4


async def test_two_processes_cannot_be_one_device(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        async for event in world.device("d0").participate(OneHot(0), task=TASK):
            assert event.kind == "checked-in"
            with pytest.raises(StateError) as caught:
                await world.device("d0").run_async(OneHot(0), task=TASK)
            assert caught.value.reason == "state-in-use"
            break


async def test_a_task_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        with pytest.raises(TransportError) as caught:
            await world.device("d0").run_async(OneHot(0), task="no-such/task")
        assert (caught.value.reason, caught.value.status) == ("not-found", 404)
        assert "no-such/task" in str(caught.value.remedy)


async def test_a_paused_task_is_waited_for(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec()) as world:
        await world.post(f"/v1/operator/tasks/{TASK}/pause")
        events: list[Event] = []
        waited = asyncio.Event()

        async def sleep(seconds: float) -> None:
            waited.set()
            await asyncio.sleep(0.01)

        device = world.device("d0", events.append, sleep=sleep)
        running = asyncio.create_task(device.run_async(OneHot(0), task=TASK, rounds=1))
        await waited.wait()
        assert events[-1].kind == "waiting"
        await world.post(f"/v1/operator/tasks/{TASK}/resume")
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        assert len((await running).releases) == 1
        await asyncio.gather(*others)


async def test_a_task_that_has_spent_its_releases_is_finished(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(budget=BudgetSpec(releases_max=2))) as world:
        results = await run_all(world, rounds=None)  # type: ignore[arg-type]
        assert [(r.finished, len(r.releases)) for r in results] == [(True, 2)] * 4


@pytest.mark.parametrize("named", [True, False], ids=["leaf named", "no leaf named"])
async def test_a_model_that_the_ledger_does_not_name_is_not_trained_on(
    tmp_path: Path, named: bool
) -> None:
    """In a synchronous task too: else a crafted model would leave no trace anywhere."""
    crafted = safetensors.numpy.save({"vector": np.full(LENGTH, 1234.5, np.float32)})
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        core = world.app[SERVICE].core
        digest = core.blobs.put_digest("models", crafted)
        async with core.database.write() as connection:
            await connection.execute(
                sa.update(versions).values(
                    digest=digest.hex(),
                    size_bytes=len(crafted),
                    **({} if named else {"leaf_index": -1}),
                )
            )
        contributor, events = Quadratic(0), list[Event]()

        def on_event(event: Event) -> None:
            events.append(event)
            assert event.kind != "training"

        with pytest.raises(LedgerRefusal) as caught:
            await world.device("d0", on_event, sleep=at_once).run_async(contributor, task=TASK)
        assert caught.value.reason == "model-not-in-ledger"
        assert contributor.jobs == []
        assert [(e.kind, e.detail["reason"]) for e in events] == [
            ("aborted", "model-not-in-ledger")
        ]
        assert not world.device("d0").has_pending()
