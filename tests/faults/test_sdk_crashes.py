"""A device that dies at every one of its disk writes, before and after: same bytes, one count."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client_sdk.accounts import device_account
from client_sdk.network.transport import Transport
from client_sdk.state import journal
from client_sdk.state.durable_files import remove_durably, write_durably
from dp.contracts import BudgetSpec, TaskSpec
from secagg.messages import KINDS, peek
from tests.kits.world import TASK, Killed, OneHot, World, plain_spec


class Crash:
    """Counts one device's changes to its state folder and dies at the chosen one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self.left: int | None = None
        self.before = True
        self.died_at = ""
        for name, real in (("write_durably", write_durably), ("remove_durably", remove_durably)):
            monkeypatch.setattr(journal, name, self._watched(name, real))

    def _watched(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        def change(path: Path, *data: bytes) -> None:
            due = False
            if path.is_relative_to(self._folder) and self.left is not None:
                self.left -= 1
                due = self.left < 0
            if due and self.before:
                self._die(name, path)
            real(path, *data)
            if due:
                self._die(name, path)

        return change

    def _die(self, name: str, path: Path) -> None:
        self.left = None
        self.died_at = f"{name} {path.name}"
        raise Killed


class Sent:
    """Every distinct message that left, by session and kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.distinct: dict[tuple[str, str], set[bytes]] = defaultdict(set)
        post, upload = Transport.post_message, Transport.upload

        async def recording_post(transport: Transport, session: str, message: bytes) -> None:
            kind = type(peek(message, *KINDS)[0]).__name__
            self.distinct[session, kind].add(message)
            await post(transport, session, message)

        async def recording_upload(
            transport: Transport, session: str, payload: bytes, *note: Any
        ) -> None:
            self.distinct[session, "payload"].add(payload)
            await upload(transport, session, payload, *note)

        monkeypatch.setattr(Transport, "post_message", recording_post)
        monkeypatch.setattr(Transport, "upload", recording_upload)


PLAIN = plain_spec(budget=BudgetSpec(releases_max=60))
NOISY = plain_spec(
    device_noise_multiplier=8.0,  # fresh noise would show in a second vector
    budget=BudgetSpec(max_epsilon=None, delta=1e-5, releases_max=60),
)


@pytest.mark.parametrize(
    ("before", "spec"), [(True, NOISY), (False, PLAIN)], ids=["before", "after"]
)
async def test_a_device_that_dies_at_any_write_repeats_itself_and_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, spec: TaskSpec
) -> None:
    """Round n kills it at its n-th change of the folder, until a round has fewer than n."""
    crash, sent = Crash(tmp_path / "d0", monkeypatch), Sent(monkeypatch)
    crash.before = before
    deaths: list[str] = []
    async with World(tmp_path, spec) as world:
        await world.device("d0").recover_account_async()  # as every client of a new folder does
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK))
            for n in (1, 2, 3)
        ]
        for number in range(60):
            crash.left = number
            version = (await world.view())["version"]
            try:
                await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
            except Killed:
                deaths.append(crash.died_at)
            else:
                crash.left = None
                break
            while (await world.view())["version"] == version:
                await world.device("d0").run_async(OneHot(0), task=TASK, rounds=1)
            await world.device("d0").resume_async()
            if spec is PLAIN:
                assert (await world.sums()).tolist() == [1.0] * 4 + [0.0] * 12
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        releases = (await world.view())["releases"]
        assert [release["survivors"] for release in releases] == [4] * len(releases)
        assert world.audit().verified
    assert {death.split()[1].partition("-")[0] for death in deaths} == {
        "checkpoint",
        "contribution",
        "session",
        "account",
        "vector",
        "server",  # its latest time
    }
    assert len(deaths) > 10
    for (session, kind), messages in sent.distinct.items():
        assert len(messages) == 1, (session, kind)


def test_the_account_is_written_by_the_journal() -> None:
    """The crash test watches the journal's writes; nothing may go round it."""
    assert not hasattr(device_account, "write_durably")
