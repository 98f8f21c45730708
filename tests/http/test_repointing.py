"""The aggregator moves: a fleet's bundles get its new address, and everything else goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import aiohttp.test_utils
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from client_sdk import Client, EnrolmentError, TransportError, repoint_bundles
from client_sdk.enrolment import create_bundle, load_bundle, save_bundle
from client_sdk.repointing import repoint
from secagg.http_api import EnrolmentBundle, ServerInfo
from secagg_cli.main import app
from tests.kits.device import PARTNER
from tests.kits.tasks import VERIFIER
from tests.kits.world import (
    POLICY,
    QUICK,
    TASK,
    Killed,
    NoContributor,
    OneHot,
    World,
    kill_at,
    plain_spec,
)

pytestmark = pytest.mark.usefixtures("no_proxies")
NAMES = [f"d{n}" for n in range(4)]


def files_of(world: World, folder: Path) -> list[Path]:
    files = [folder / f"{name}.json" for name in NAMES]
    for name, file in zip(NAMES, files, strict=True):
        save_bundle(file, world.bundle(name))
    return files


def device(file: Path, **parts: Any) -> Client:
    folder = file.with_suffix("")
    return Client.from_bundle(file, policy=POLICY, state_dir=folder, transport=QUICK, **parts)


async def move(world: World) -> None:
    """The same aggregator, database and keys, at another port alone."""
    await world.stop()
    world.port = aiohttp.test_utils.unused_port()
    await world.start()


async def test_pending_sessions_and_accounts_go_on_at_the_new_address(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        files = files_of(world, tmp_path)
        dead = await asyncio.gather(
            *(
                device(file, on_event=kill_at("uploading")).run_async(OneHot(n), task=TASK)
                for n, file in enumerate(files)
            ),
            return_exceptions=True,
        )
        assert [type(error) for error in dead] == [Killed] * 4
        await move(world)
        command = ["bundle", "repoint", str(tmp_path), "--server", world.url, "--format", "json"]
        done = await asyncio.to_thread(CliRunner().invoke, app, command, catch_exceptions=False)
        assert json.loads(done.stdout) == {"changed": [str(file) for file in files], "bundles": 4}
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        results = await asyncio.gather(
            *(device(file).run_async(NoContributor(), task=TASK, rounds=1) for file in files)
        )
        assert [len(result.releases) for result in results] == [1] * 4
        assert (await world.sums())[:4].tolist() == [1.0] * 4
    for file in files:
        moved = load_bundle(file)
        assert replace(moved, server="") == replace(world.bundle(file.stem), server="")
        with device(file)._opened() as (_, account):
            assert len(account.cohorts()) == 1  # charged before the move, and not again


async def test_another_aggregator_is_refused_and_no_file_changes(tmp_path: Path) -> None:
    """Also where only one bundle of the folder is another's."""
    folder = tmp_path / "bundles"
    async with (
        World(tmp_path / "a", plain_spec(4)) as world,
        World(tmp_path / "b", plain_spec(4)) as other,
    ):
        files = files_of(world, folder)
        save_bundle(folder / "stranger.json", other.bundle("x"))
        before = [file.read_bytes() for file in sorted(folder.iterdir())]
        for server, some in ((other.url, files), (world.url, [*files, folder / "stranger.json"])):
            with pytest.raises(EnrolmentError, match="another aggregator") as caught:
                await asyncio.to_thread(repoint_bundles, some, server, transport=QUICK)
            assert caught.value.reason == "server-of-another"
            assert {caught.value.expected, caught.value.found} == {
                bytes(world.bundle("d0").task_key).hex(),
                bytes(other.bundle("x").task_key).hex(),
            }
        assert [file.read_bytes() for file in sorted(folder.iterdir())] == before


async def test_a_bundle_that_stands_right_is_left_alone(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        files = files_of(world, tmp_path)
        repointed = asyncio.to_thread(repoint_bundles, files, world.url + "/", transport=QUICK)
        assert await repointed == ()

    before = [file.read_bytes() for file in files]
    impatient = dataclasses.replace(QUICK, patience_s=0.1)
    with pytest.raises(TransportError, match="unreachable"):
        await asyncio.to_thread(repoint_bundles, files, world.url, transport=impatient)
    assert [file.read_bytes() for file in files] == before


def info_of(bundle: EnrolmentBundle) -> ServerInfo:
    return ServerInfo(task_key=bundle.task_key, ledger_verifier=bundle.ledger_verifier)


BUNDLE = create_bundle("https://old.example", bytes(32), VERIFIER, PARTNER.seed, 4_000_000_000)


@pytest.mark.parametrize(
    ("server", "info", "reason"),
    [
        ("https://new.example", replace(info_of(BUNDLE), task_key=bytes(31) + b"1"), "task key"),
        ("https://new.example", replace(info_of(BUNDLE), ledger_verifier=VERIFIER + "x"), "ledger"),
        ("http://new.example", info_of(BUNDLE), "encryption"),
        ("HTTP://new.example", info_of(BUNDLE), "encryption"),
        (" http://new.example", info_of(BUNDLE), "encryption"),
        ("https://user:word@new.example", info_of(BUNDLE), "cannot be used"),
    ],
)
def test_what_a_bundle_trusts_does_not_change_with_its_address(
    server: str, info: ServerInfo, reason: str
) -> None:
    with pytest.raises(EnrolmentError, match=reason):
        repoint(BUNDLE, server, info)
    moved = repoint(BUNDLE, "https://new.example/a/", info_of(BUNDLE))
    assert moved == replace(BUNDLE, server="https://new.example/a")


def test_a_folder_without_bundles_is_named(tmp_path: Path) -> None:
    command = ["bundle", "repoint", str(tmp_path), "--server", "http://x", "--format", "json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["reason"] == "bundles-missing"
