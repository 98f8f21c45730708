"""What a device fetches is bounded, fits its disk, and leaves nothing behind when it is refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from client_sdk import LedgerRefusal, StateError, TransportError
from client_sdk.rounds.checkin import DISK_MARGIN_BYTES
from client_sdk.state.keystore import open_storage_key
from dp.contracts import BudgetSpec
from dp.tlog.tiles import resource_bytes_max
from dp.transfer_sizes import MODEL_HEADER_BYTES, download_size
from secagg.http_api import Offer, Problem
from tests.kits.quadratics import Quadratic, quadratic_spec
from tests.kits.world import POLICY, QUICK, TASK, World, plain_spec, run_all

IMPATIENT = replace(QUICK, patience_s=0.2, poll_s=0.2)
_Usage = namedtuple("_Usage", "total used free")


def models(world: World, name: str = "d0") -> list[str]:
    return sorted(path.suffix for path in (world.folder / name / "models").iterdir())


def left_behind(world: World, *digests: bytes) -> None:
    """Parts of other models, as earlier runs may have left them."""
    open_storage_key(world.folder / "d0")
    folder = world.folder / "d0" / "models"
    folder.mkdir(exist_ok=True)
    for digest in digests:
        (folder / digest.hex()).with_suffix(".part").write_bytes(b"x" * 10)


def serve(world: World, content: bytes | None = None, status: int = 200, **offered: Any) -> None:
    """Offer another model (of ``content``), and answer for it."""

    async def gate(request: web.Request, body: bytes) -> bytes | web.Response | None:
        if request.path.endswith("/offer"):
            offer = msgspec.json.decode(body, type=Offer)
            model = offer.model
            if content is not None:
                digest = hashlib.sha256(content).digest()
                model = msgspec.structs.replace(model, digest=digest, size_bytes=len(content))
            model = msgspec.structs.replace(model, **offered)
            return msgspec.json.encode(msgspec.structs.replace(offer, model=model))
        if request.path.startswith("/v1/models/"):
            refused = msgspec.json.encode(Problem(reason="refused", message="No."))
            return web.Response(body=content if status in (200, 503) else refused, status=status)
        return None

    world.gate = gate


async def run(world: World, **parts: Any) -> Any:
    device = world.device("d0", transport=IMPATIENT, **parts)
    async with asyncio.timeout(20.0):  # whoever is let in waits for a cohort that never comes
        return await device.run_async(Quadratic(0), task=TASK, rounds=1)


@pytest.mark.parametrize(
    ("content", "status", "offered", "reason", "left"),
    [
        (b"x" * 90, 200, {"digest": bytes(32)}, "model-digest", []),
        (b"no safetensors", 200, {}, "model-malformed", []),
        (b"x" * 90, 200, {"size_bytes": 1 << 30}, "model-size", []),
        (b"x" * 90, 200, {"size_bytes": 60}, "model-size", []),
        (b"x" * 90, 404, {}, "refused", []),
        (b"x" * 90, 403, {}, "refused", []),
        (b"", 503, {"size_bytes": 200, "digest": b"\1" * 32}, "answer-foreign", [".part"]),
    ],
)
async def test_a_part_stays_only_where_the_transfer_may_go_on(
    tmp_path: Path,
    content: bytes,
    status: int,
    offered: dict[str, Any],
    reason: str,
    left: list[str],
) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        digest = offered.get("digest", hashlib.sha256(content).digest())
        left_behind(world, digest, b"\2" * 32, b"\3" * 32)
        serve(world, content, status, **offered)
        with pytest.raises(TransportError) as caught:
            await run(world)
        assert (caught.value.reason, models(world)) == (reason, left)


async def test_a_part_that_is_a_link_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        serve(world, b"x" * 90)
        left_behind(world)
        thesis = tmp_path / "thesis"
        thesis.write_text("mine")
        name = hashlib.sha256(b"x" * 90).hexdigest()
        (world.folder / "d0" / "models" / f"{name}.part").symlink_to(thesis)
        with pytest.raises(StateError, match="state-folder-taken"):
            await run(world)
        assert thesis.read_text() == "mine"


async def test_models_that_never_come_do_not_pile_up(tmp_path: Path) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        for number in range(3):
            serve(world, b"", 503, digest=bytes((number,)) * 32, size_bytes=200)
            left_behind(world, bytes((number,)) * 32)
            with pytest.raises(TransportError):
                await run(world)
            assert len(models(world)) == 1


async def test_a_transfer_has_a_deadline_in_all(tmp_path: Path) -> None:
    """The policy's limit is cut down between admission and transfer, so that no test waits."""
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        serve(world, b"x" * 90)
        drip = world.gate
        assert drip is not None

        async def gate(request: web.Request, body: bytes) -> bytes | web.Response | None:
            if request.path.startswith("/v1/models/"):
                await asyncio.sleep(60.0)
            return await drip(request, body)

        world.gate = gate
        policy = replace(POLICY, max_hold_s=240.0)
        admitted: list[float] = []
        real = type(policy)._admit_work

        def admit(self: Any, manifest: Any) -> None:
            real(self, manifest)
            admitted.append(self.max_hold_s)
            object.__setattr__(self, "max_hold_s", 0.05)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(policy), "_admit_work", admit)
            with pytest.raises(TransportError) as caught:
                await run(world, policy=policy)
        assert (caught.value.reason, admitted, models(world)) == ("model-late", [240.0], [])


async def test_a_disk_without_room_is_said_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        asked: list[str] = []

        async def gate(request: web.Request, body: bytes) -> None:
            asked.append(request.path)

        world.gate = gate
        free = DISK_MARGIN_BYTES + 50
        usage = _Usage(1 << 40, 0, free)
        monkeypatch.setattr("client_sdk.rounds.checkin.shutil.disk_usage", lambda _path: usage)
        with pytest.raises(StateError) as caught:
            await run(world)
        error = caught.value
        assert (error.reason, error.found) == ("disk-space", free)
        assert error.remedy
        assert not [path for path in asked if path.startswith("/v1/models/")]
        assert models(world) == []


async def test_a_refused_task_leaves_no_model_but_not_now_does(tmp_path: Path) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:
        for policy, left in (
            (replace(POLICY, may_train=lambda: False), 1),
            (replace(POLICY, min_cohort=10), 0),
        ):
            left_behind(world, b"\2" * 32) if left else None
            result = await run(world, policy=policy)
            assert result.refusals
            assert len(models(world)) == left


async def test_one_model_lies_on_the_disk_and_none_when_the_task_is_over(tmp_path: Path) -> None:
    spec = quadratic_spec("fedavg", budget=BudgetSpec(max_epsilon=None, releases_max=2))
    async with World(tmp_path, spec) as world:
        left_behind(world, b"\2" * 32)
        devices = [world.device(f"d{n}") for n in range(4)]

        async def take_part(rounds: int | None) -> None:
            await asyncio.gather(
                *(
                    device.run_async(Quadratic(n), task=TASK, rounds=rounds)
                    for n, device in enumerate(devices)
                )
            )

        await take_part(1)
        assert models(world) == [""]
        await take_part(None)
        assert models(world) == []


async def test_a_sum_needs_no_model_and_fetches_none(tmp_path: Path) -> None:
    """Whatever the offer says of it: what such a task calls its model is the last sum."""
    async with World(tmp_path, plain_spec()) as world:
        asked: list[str] = []

        async def gate(request: web.Request, body: bytes) -> None:
            asked.append(request.path)

        world.gate = gate
        results = await run_all(world, rounds=2)
        assert [len(result.releases) for result in results] == [2] * 4
        assert not [path for path in asked if path.startswith("/v1/models/")]
        assert models(world) == []


def test_a_model_s_limit_follows_from_its_tensors() -> None:
    from tests.kits.device import fedsgd_spec, make_manifest
    from tests.kits.policy_specs import SPECS, VERIFIER

    plain = make_manifest(fedsgd_spec(), VERIFIER)
    assert download_size(plain) == 4 * 12 + MODEL_HEADER_BYTES
    scaffold = make_manifest(SPECS["scaffold"](), VERIFIER)
    assert download_size(scaffold) == 2 * 4 * 12 + MODEL_HEADER_BYTES


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("checkpoint", 1 << 20),
        ("tile/0/x001/067", 8_192),
        ("tile/1/000.p/3", 8_192),
        ("tile/entries/000.p/3", 256 * 65_537),
        ("contributors/" + "0" * 64, 2_560_000),
    ],
)
def test_every_file_of_the_ledger_has_a_limit_of_its_kind(path: str, limit: int) -> None:
    assert resource_bytes_max(path) == limit


async def test_a_ledger_file_beyond_its_limit_is_not_read_to_the_end(tmp_path: Path) -> None:
    async with World(tmp_path, quadratic_spec("fedavg")) as world:

        async def gate(request: web.Request, body: bytes) -> bytes | None:
            return bytes((1 << 20) + 1) if request.path == "/ledger/checkpoint" else None

        world.gate = gate
        with pytest.raises(LedgerRefusal) as caught:
            await run(world)
        assert caught.value.reason == "ledger-unreadable"
        assert "response-too-large" in str(caught.value)
