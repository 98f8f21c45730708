"""A device of the SDK that refuses a roster says so, and the others go on without it at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from client_sdk.network.transport import Transport
from dp.contracts import CohortSpec, DeadlineSpec
from secagg import messages
from secagg.client import ClientConfig, checks
from secagg.errors import RemoteProtocolError
from tests.kits.world import TASK, Killed, OneHot, World, plain_spec

WAITS_S = 20.0  # far below every deadline of the cohort
SPEC = plain_spec(
    cohort=CohortSpec(size_min=3, size_max=4, survivors_min=3),
    deadlines=DeadlineSpec(report_s=300.0, share_s=300.0),
)


def objecting(patch: pytest.MonkeyPatch, who: bytes, whom: bytes) -> None:
    """The device takes the other's certificate for expired: its clock is wrong, say."""
    real = checks.check_certificates

    def check(config: ClientConfig, roster: messages.Roster, now_s: float) -> Any:
        if config.certificate.identity_key == who:
            raise RemoteProtocolError("certificate-expired", "It has expired.", culprit=whom)
        return real(config, roster, now_s)

    patch.setattr(checks, "check_certificates", check)


async def refused_once(world: World, runs: list[asyncio.Task[Any]]) -> dict[str, Any]:
    for run in list(asyncio.as_completed(runs, timeout=WAITS_S))[:3]:
        await run
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    view = await world.view()
    (refusal,) = view["refusals"]
    assert view["aborted"] == 0
    assert (await world.sums())[:4].tolist() == [0, 1, 1, 1]
    return refusal


async def test_it_says_why_and_the_others_do_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    async with World(tmp_path, SPEC) as world:
        keys = [world.bundle(f"d{n}").certificate.identity_key for n in range(4)]
        objecting(monkeypatch, keys[0], keys[2])

        def note(event: Any) -> None:
            if event.kind == "aborted":
                told.append(event.detail["reason"])

        runs = [
            asyncio.create_task(
                world.device(f"d{n}", note if n == 0 else None).run_async(
                    OneHot(n), task=TASK, rounds=1
                )
            )
            for n in range(4)
        ]
        refusal = await refused_once(world, runs)
        assert told[0] == "certificate-expired"
        assert (refusal["identity"], refusal["target"]) == (keys[0].hex(), keys[2].hex())
        assert (refusal["reason"], refusal["times"]) == ("certificate-expired", 1)


async def test_killed_before_it_could_say_so_it_says_so_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State and word are journalled together, before the word is sent."""
    async with World(tmp_path, SPEC) as world:
        keys = [world.bundle(f"d{n}").certificate.identity_key for n in range(4)]
        objecting(monkeypatch, keys[0], keys[2])
        left = [1]
        real = Transport.post_message

        async def post(self: Transport, session: str, message: bytes) -> None:
            if type(messages.peek(message, *messages.KINDS)[0]) is messages.Refusal and left:
                left.pop()
                raise Killed
            await real(self, session, message)

        monkeypatch.setattr(Transport, "post_message", post)

        def run(n: int) -> asyncio.Task[Any]:
            return asyncio.create_task(
                world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1)
            )

        runs = [run(n) for n in range(4)]
        async with asyncio.timeout(WAITS_S):
            await asyncio.wait(runs[:1])
        assert isinstance(runs[0].exception(), Killed)
        runs[0] = run(0)
        assert (await refused_once(world, runs))["times"] == 1
