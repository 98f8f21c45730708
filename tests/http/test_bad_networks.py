"""Devices on bad networks: every run ends released, or cleanly out, within a stated time."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from client_sdk import Client, Event, Unreached
from tests.kits.bad_networks import HASTY, QUICK, run_fleet
from tests.kits.boxes import Authority
from tests.kits.fault_proxy import Schedule, faulty
from tests.kits.world import POLICY, TASK, OneHot, World, plain_spec

pytestmark = pytest.mark.usefixtures("no_proxies")


@pytest.mark.parametrize(
    "faults",
    [
        ("lost-answer", "cut", "duplicate", "reorder"),
        ("drop", "502", "portal", "empty"),
        ("slow", "stall", "half-open"),
    ],
    ids=["answers", "refusals", "silence"],
)
async def test_a_fleet_releases_over_a_bad_network_and_little_is_sent_again(
    tmp_path: Path, faults: tuple[str, ...]
) -> None:
    pace, rate = (HASTY, 0.05) if "stall" in faults else (QUICK, 0.3)
    ended = await run_fleet(tmp_path, lambda number: Schedule(faults, rate, 300 + number), pace)
    assert ended.ends == ("released",) * 3, ended
    assert ended.sent_again <= 0.1, ended
    assert ended.seconds < QUICK.run_s


async def test_what_compresses_answers_ends_a_run_at_once(tmp_path: Path) -> None:
    """The ledger is what a new device reads first."""
    ended = await run_fleet(tmp_path, lambda number: Schedule(("gzip",), 1.0))
    assert set(ended.ends) == {"ledger-unreadable"}
    assert ended.sent_bytes == 0
    assert ended.seconds < QUICK.run_s / 2


@pytest.mark.parametrize("what", ["untrusted", "expired", "wrong host", "plain port"])
async def test_a_server_that_proves_nothing_hears_nothing(tmp_path: Path, what: str) -> None:
    ours = Authority(tmp_path, "ours")
    signer = Authority(tmp_path, "other") if what == "untrusted" else ours
    host = "other.example" if what == "wrong host" else "127.0.0.1"
    context = signer.server(host, days=-1 if what == "expired" else 1)
    async with (
        World(tmp_path, plain_spec(4)) as world,
        faulty(("127.0.0.1", world.port), Schedule(()), tls=context) as network,
    ):
        port = world.port if what == "plain port" else network.port
        device = Client.from_bundle(
            replace(world.bundle("d0"), server=f"https://127.0.0.1:{port}"),
            policy=POLICY,
            state_dir=tmp_path / "d0",
            transport=dataclasses.replace(QUICK.transport, ca_file=ours.ca_file, patience_s=0.5),
        )
        with pytest.raises(Unreached) as caught:
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert network.up == 0
    assert caught.value.reason == ("tls-failed" if what == "plain port" else "tls-untrusted")


async def test_a_name_that_moves_to_another_machine_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old machine goes away under a device that waits for its cohort."""
    at = "127.0.0.1"
    resolve = socket.getaddrinfo

    def moving(host: str, *rest: Any, **named: Any) -> Any:
        return resolve(at if host == "aggregator.test" else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", moving)
    async with World(tmp_path, plain_spec(4)) as world, AsyncExitStack() as stack:
        target = ("127.0.0.1", world.port)
        old = AsyncExitStack()
        first = await old.enter_async_context(faulty(target, Schedule(())))
        server = f"http://aggregator.test:{first.port}"
        bundle = replace(world.bundle("d0"), server=server)
        reported = asyncio.Event()

        def on_event(event: Event) -> None:
            if event.kind == "reported":
                reported.set()

        device = Client.from_bundle(
            bundle,
            policy=POLICY,
            state_dir=tmp_path / "d0",
            on_event=on_event,
            transport=QUICK.transport,
        )
        mine = asyncio.create_task(device.run_async(OneHot(0), task=TASK, rounds=1))
        await asyncio.wait_for(reported.wait(), 20)
        await stack.enter_async_context(
            faulty(target, Schedule(()), host="127.0.0.2", port=first.port)
        )
        at = "127.0.0.2"
        await old.aclose()
        others = (
            world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1) for n in (1, 2, 3)
        )
        async with asyncio.timeout(60.0):
            results = await asyncio.gather(mine, *others)
    assert [len(result.releases) for result in results] == [1] * 4
