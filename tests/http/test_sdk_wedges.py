"""A record that contradicts a device ends one session, and stops nothing but that task."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from typer.testing import CliRunner

from aggregator.cohorts import charging
from aggregator.http.app import SERVICE
from client_sdk import Event, LedgerRefusal, RunResult, StateError
from client_sdk.accounts.device_account import DeviceAccount
from client_sdk.maintenance import StateFolder
from client_sdk.rounds.session import Session
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import open_storage_key
from dp.ledger import parsing, records
from dp.ledger.records import ReleaseEntry
from dp.tlog.notes import Checkpoint, sign_checkpoint
from secagg import messages
from secagg.server import machine
from secagg_cli.main import app
from tests.kits.quadratics import Quadratic, local_spec
from tests.kits.world import QUICK, TASK, Killed, OneHot, World, kill_at, plain_spec

OTHER = "other"


async def at_once(seconds: float) -> None:
    await asyncio.sleep(0)


async def run_all(
    world: World, contributor: Callable[[int], Any] = OneHot, task: str = TASK, **first: Any
) -> list[Any]:
    return await asyncio.gather(
        *(
            world.device(f"d{n}", **(first if n == 0 else {})).run_async(
                contributor(n), task=task, rounds=1
            )
            for n in range(4)
        ),
        return_exceptions=True,
    )


def lie(monkeypatch: pytest.MonkeyPatch, change: Callable[[ReleaseEntry], dict[str, Any]]) -> Any:
    honest = charging.release_record

    def lying(*arguments: Any, **known: Any) -> bytes:
        *others, entry = arguments
        return honest(*others, msgspec.structs.replace(entry, **change(entry)), **known)

    monkeypatch.setattr(charging, "release_record", lying)
    return honest


LIES: dict[str, Callable[[ReleaseEntry], dict[str, Any]]] = {
    "cohort": lambda entry: {"cohort": b"c" * 32},
    "attempt": lambda entry: {"attempt": (entry.attempt or 0) + 1},
    "roster": lambda entry: {"roster_digest": b"r" * 32},
    "cohort size": lambda entry: {"cohort_size": entry.cohort_size + 1},
    "masking set": lambda entry: {"masking_set_size": entry.masking_set_size + 1},
    "survivors": lambda entry: {"survivors": entry.survivors - 1},
    "model": lambda entry: {"model_digests": (b"m" * 32,)},
    "model version": lambda entry: {"model_versions": (entry.model_versions[0] + 1,)},
    "no version": lambda entry: {"model_versions": ()},
}


@pytest.mark.parametrize("what", LIES)
async def test_a_record_that_says_otherwise_in_any_field_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    lie(monkeypatch, LIES[what])
    async with World(tmp_path, plain_spec(4)) as world:
        results = await run_all(world)
        assert [getattr(r, "reason", r) for r in results] == ["release-mismatch"] * 4
        assert not world.device("d0").has_pending()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("noise_variance", "1"),
        ("lines", []),
        ("epsilon_micro", 1),
        ("released_at", "yesterday"),
    ],
)
async def test_a_cost_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    honest = records._canonical

    def changed(record: Any) -> bytes:
        return honest({**record, key: value} if record["type"] == "release" else record)

    monkeypatch.setattr(records, "_canonical", changed)
    async with World(tmp_path, local_spec()) as world:
        results = await run_all(world, Quadratic)
        assert [getattr(r, "reason", r) for r in results] == ["release-mismatch"] * 4


async def test_a_record_of_a_later_version_keeps_a_device_out_until_its_software_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = records._canonical

    def later(record: Any) -> bytes:
        return honest({**record, "version": 3} if record["type"] == "release" else record)

    async with World(tmp_path, plain_spec(4)) as world:
        monkeypatch.setattr(records, "_canonical", later)
        results = await run_all(world)
        assert [getattr(r, "reason", r) for r in results] == ["record-version"] * 4
        monkeypatch.setattr(records, "_canonical", honest)
        again = await run_all(world)
        assert [getattr(r, "reason", r) for r in again] == ["ledger-quarantined"] * 4
        assert "Update" in str(again[0])
        monkeypatch.setitem(parsing._VERSIONS, "release", (1, 2, 3))
        updated = await run_all(world)
        assert [len(result.releases) for result in updated] == [1] * 4
        assert world.device("d0").quarantined()[0].version == 3


async def test_a_mismatch_ends_the_session_and_quarantines_the_task_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        await world.post("/v1/operator/tasks", plain_spec(4, task=OTHER))
        honest = lie(monkeypatch, LIES["masking set"])
        events: list[Event] = []
        results = await run_all(world, on_event=events.append)
        assert isinstance(results[0], LedgerRefusal)
        monkeypatch.setattr(charging, "release_record", honest)

        folder = tmp_path / "d0"
        (evidence,) = folder.glob("evidence-*.json")
        assert os.stat(evidence).st_mode & 0o777 == 0o600
        shown = json.loads(evidence.read_text())
        assert shown["reason"] == "release-mismatch"
        assert (shown["expected"]["masking_set_size"], shown["found"]["masking_set_size"]) == (4, 5)
        assert shown["record"]["masking_set_size"] == 5
        assert {"proof", "checkpoint", "entry", "leaf_index", "ledger"} <= shown.keys()
        assert shown["known"]["masking_set_size"] == 4
        aborted = next(event for event in events if event.kind == "aborted")
        assert aborted.detail["reason"] == "release-mismatch"
        assert aborted.detail["evidence"] == str(evidence)

        journal = Journal(folder, open_storage_key(folder))
        assert DeviceAccount(journal, 1e-5).charges(TASK) == 1
        assert journal.load_contribution() is None
        assert [path.name for path in folder.glob("checkpoint-*")]
        for _ in range(3):
            contributor = OneHot(0)
            with pytest.raises(LedgerRefusal) as caught:
                await world.device("d0").run_async(contributor, task=TASK, rounds=1)
            assert caught.value.reason == "ledger-quarantined"
            assert str(evidence) in str(caught.value)
            assert contributor.jobs == []
        others = await run_all(world, task=OTHER)
        assert [len(result.releases) for result in others] == [1] * 4

        assert [q.task for q in world.device("d0").release_quarantine(TASK)] == [TASK]
        for n in range(1, 4):
            world.device(f"d{n}").release_quarantine(TASK)
        again = await run_all(world)
        assert [len(result.releases) for result in again] == [1] * 4
        assert evidence.exists()


async def test_a_mismatch_that_another_tasks_run_meets_is_told_and_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device dies before it reads its receipt, and comes back for another task."""
    async with World(tmp_path, plain_spec(4)) as world:
        await world.post("/v1/operator/tasks", plain_spec(4, task=OTHER))
        honest = lie(monkeypatch, LIES["masking set"])
        await run_all(world, on_event=kill_at("unmasked"))
        monkeypatch.setattr(charging, "release_record", honest)
        assert world.device("d0").has_pending()
        results = await run_all(world, task=OTHER)
        assert [len(result.releases) for result in results] == [1] * 4
        assert [path.name[:9] for path in results[0].evidence] == ["evidence-"]
        assert [entry.task for entry in world.device("d0").quarantined()] == [TASK]


@pytest.mark.parametrize("kind", ["ledger-rolled-back", "ledger-forked", "ledger-too-large"])
async def test_a_bent_ledger_ends_the_session_and_stays_refused(tmp_path: Path, kind: str) -> None:
    """The checkpoint that is remembered stays, so every task on this ledger is refused."""
    async with World(tmp_path, plain_spec(4)) as world:
        served: list[bytes] = []

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers.get("User-Agent") == "d0" and served
            return web.Response(body=served[0]) if mine and "checkpoint" in request.path else None

        def bend(event: Event) -> None:
            if event.kind == "unmasked":
                size = {"ledger-rolled-back": 0, "ledger-forked": 1, "ledger-too-large": 10**17}
                note = Checkpoint("secagg.local/ledger", size[kind], b"f" * 32)
                served.append(sign_checkpoint(note, world.app[SERVICE].core.keys.ledger))

        world.gate = gate
        mine = dataclasses.replace(QUICK, user_agent="d0")
        results = await run_all(world, on_event=bend, transport=mine, sleep=at_once)
        assert [len(result.releases) for result in results[1:]] == [1] * 3
        device = world.device("d0", transport=mine, sleep=at_once)
        assert not device.has_pending()
        assert list((tmp_path / "d0").glob("evidence-*.json"))
        with pytest.raises(LedgerRefusal) as caught:
            await device.run_async(OneHot(0), task=TASK, rounds=1)
        assert caught.value.reason == kind
        assert device.quarantined() == ()
        outside = list((tmp_path / "d0").glob(f"evidence-{kind}-*.json"))
        assert len(outside) == 1  # what a check-in was shown is kept too
        kept = json.loads(outside[0].read_text())
        assert kept["checkpoint"] == served[0].decode()
        assert kept["remembered"]
        assert outside[0].stat().st_mode & 0o777 == 0o600
        error = caught.value
        assert str(error).count(kind) == 2  # its reason, and the name of the file
        assert "sk the operator" in str(error.remedy)
        assert str(outside[0]) in str(error.remedy)
        outside[0].unlink()
        with pytest.raises(LedgerRefusal, match="evidence"):
            await device.recover_account_async()
        assert outside[0].exists()
        served.clear()  # an honest ledger again: nothing was wedged
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        assert len((await device.run_async(OneHot(0), task=TASK, rounds=1)).releases) == 1
        await asyncio.gather(*others)


async def test_a_receipt_that_stays_unproven_is_given_up_at_the_second_look(
    tmp_path: Path,
) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        old = (world.app[SERVICE].ledger.folder / "checkpoint").read_bytes()

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers.get("User-Agent") == "d0"
            return web.Response(body=old) if mine and "checkpoint" in request.path else None

        world.gate = gate
        mine = dataclasses.replace(QUICK, user_agent="d0")
        results = await run_all(world, transport=mine, sleep=at_once)
        assert getattr(results[0], "reason", None) == "release-not-proven"
        device = world.device("d0", transport=mine, sleep=at_once)
        assert device.has_pending()
        result = await device.resume_async()
        assert (result.aborted, len(result.evidence), result.releases) == (1, 1, ())
        assert not device.has_pending()
        assert device.quarantined() == ()


def invoke(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["session", *arguments, "--format", "json"])
    assert done.exit_code == code, done.output
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


async def test_the_command_resets_a_session_and_nothing_else(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0", kill_at("uploading")).run_async(OneHot(0), task=TASK, rounds=1)
        folder = tmp_path / "d0"
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        shown = await asyncio.to_thread(invoke, "show", str(folder))
        assert shown["session"]["phase"] == "uploading"
        assert shown["session"]["task"] == TASK
        assert await asyncio.to_thread(invoke, "reset", str(folder)) == {"reset": True}
        after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert before.keys() - after.keys() == {"session", "vector"}
        assert all(before[name] == after[name] for name in after)
        assert await asyncio.to_thread(invoke, "reset", str(folder)) == {"reset": False}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


def test_a_session_that_nobody_can_read_is_shown_and_reset(tmp_path: Path) -> None:
    journal = Journal(tmp_path, open_storage_key(tmp_path))
    journal.save_blob("account", b"a")
    journal.save_blob("session", b"\xc1")
    assert invoke("show", str(tmp_path))["session"]["phase"] == "unreadable"
    assert invoke("reset", str(tmp_path)) == {"reset": True}
    assert journal.load_blob("account") == b"a"
    assert invoke("show", str(tmp_path)) == {
        "session": None,
        "quarantined": [],
        "failing": [],
    }


def test_the_command_makes_no_folder(tmp_path: Path) -> None:
    missing = tmp_path / "typo"
    assert invoke("show", str(missing), code=1)["error"]["reason"] == "state-missing"
    assert not missing.exists()


async def test_a_folder_in_use_is_not_reset(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        async for event in world.device("d0").participate(OneHot(0), task=TASK):
            assert event.kind == "checked-in"
            folder = StateFolder.open(tmp_path / "d0")
            with pytest.raises(Exception, match="state-in-use"):
                folder.reset_session()
            break


@pytest.mark.parametrize("missing", ["vector", "contribution"])
async def test_a_session_whose_files_are_gone_ends(tmp_path: Path, missing: str) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        kind = "uploading" if missing == "vector" else "masking"
        with pytest.raises(Killed):
            await world.device("d0", kill_at(kind)).run_async(OneHot(0), task=TASK, rounds=1)
        (tmp_path / "d0" / missing).unlink()
        result: RunResult = await world.device("d0").resume_async()
        assert (result.aborted, result.releases) == (1, ())
        assert not world.device("d0").has_pending()
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


PHASES = {
    "reported": "advertised",
    "shared": "shared",
    "checked": "checked",
    "uploading": "uploading",
    "uploaded": "uploading",
    "confirmed": "confirmed",
    "unmasked": "unmasked",
}


@pytest.mark.parametrize("kind", PHASES)
async def test_what_was_sent_is_journalled_before(tmp_path: Path, kind: str) -> None:
    """A device that dies after it confirmed must not confirm a second survivor set."""
    async with World(tmp_path, plain_spec(4)) as world:
        others = [
            asyncio.create_task(world.device(f"d{n}").run_async(OneHot(n), task=TASK, rounds=1))
            for n in (1, 2, 3)
        ]
        with pytest.raises(Killed):
            await world.device("d0", kill_at(kind)).run_async(OneHot(0), task=TASK, rounds=1)
        folder = tmp_path / "d0"
        journal = Journal(folder, open_storage_key(folder))
        session = Session.resume(journal, world.bundle("d0"), lambda: 0.0)
        assert session is not None
        assert session.state.phase == PHASES[kind]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_a_record_that_nests_too_deeply_ends_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no function can follow must not stop the one that writes the evidence."""
    honest = records._canonical

    def nested(record: Any) -> bytes:
        entry = honest(record)
        if record["type"] != "release":
            return entry
        return entry[:-1] + b',"z":' + b"[" * 700 + b"]" * 700 + b"}"

    monkeypatch.setattr(records, "_canonical", nested)
    lie(monkeypatch, LIES["masking set"])
    async with World(tmp_path, plain_spec(4)) as world:
        results = await run_all(world)
        assert [getattr(r, "reason", r) for r in results] == ["release-mismatch"] * 4
        assert not world.device("d0").has_pending()
        assert list((tmp_path / "d0").glob("evidence-*.json"))


async def test_more_releases_than_a_task_may_make_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receipt and a record that agree on a release beyond the budget."""
    beyond = 1_000_000
    honest_record, honest_receipt = records._canonical, messages.Receipt

    def numbered(record: Any) -> bytes:
        return honest_record(
            {**record, "release": beyond} if record["type"] == "release" else record
        )

    monkeypatch.setattr(records, "_canonical", numbered)
    monkeypatch.setattr(
        machine, "Receipt", lambda ctx, release, leaf: honest_receipt(ctx, beyond, leaf)
    )
    async with World(tmp_path, plain_spec(4)) as world:
        results = await run_all(world)
        assert [getattr(r, "reason", r) for r in results] == ["release-mismatch"] * 4
        assert "more releases than it may" in str(results[0])


class Later:
    """A steady clock that an event moves on."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s

    def at_resumed(self, event: Event) -> None:
        if event.kind == "resumed":
            self.ahead_s += 3_000.0  # each step of the cohort is over


@pytest.mark.parametrize(
    ("answer", "over"),
    [
        (web.Response(status=403, body=b'{"reason": "no", "message": "No."}'), False),
        (web.Response(status=403), True),
        (web.Response(body=bytes(20 << 20)), False),
        (web.Response(status=500), True),
    ],
    ids=["refused", "refused by a box between, long after", "too large", "fails, long after"],
)
async def test_a_ledger_that_answers_anything_else_wedges_nobody(
    tmp_path: Path, answer: web.Response, over: bool
) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        bent: list[Event] = []

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            mine = request.headers.get("User-Agent") == "d0" and "/ledger/tile/" in request.path
            if not bent or not mine:
                return None
            return web.Response(status=answer.status, body=answer.body)

        def bend(event: Event) -> None:
            if event.kind == "unmasked":
                bent.append(event)

        world.gate = gate
        mine = dataclasses.replace(QUICK, user_agent="d0", patience_s=0.2)
        results = await run_all(world, transport=mine, sleep=at_once, on_event=bend)
        assert getattr(results[0], "reason", None) in ("ledger-unreadable", "answer-foreign")
        later = Later()
        looks = 0
        while world.device("d0").has_pending():
            looks += 1
            assert looks <= 2
            device = world.device(
                "d0",
                later.at_resumed if over else None,
                transport=mine,
                sleep=at_once,
                steady=later,
            )
            with contextlib.suppress(LedgerRefusal):
                assert (await device.resume_async()).aborted == 1
        assert world.device("d0").quarantined() == ()


async def test_a_pending_session_of_a_task_that_is_not_offered_stops_no_other(
    tmp_path: Path,
) -> None:
    """The offer of the first task is refused for good; the second one goes on."""
    async with World(tmp_path, plain_spec(4)) as world:
        await world.post("/v1/operator/tasks", plain_spec(4, task=OTHER))
        await run_all(world, on_event=kill_at("unmasked"))
        assert world.device("d0").has_pending()

        async def gate(request: web.Request, body: bytes) -> web.Response | None:
            if request.path != f"/v1/tasks/{TASK}/offer":
                return None
            return web.Response(status=403, body=b'{"reason": "no", "message": "No."}')

        world.gate = gate
        results = await run_all(world, task=OTHER)
        assert [len(getattr(result, "releases", ())) for result in results] == [1] * 4


async def test_a_session_that_does_not_decode_is_told_once(tmp_path: Path) -> None:
    async with World(tmp_path, plain_spec(4)) as world:
        folder = tmp_path / "d0"
        journal = Journal(folder, open_storage_key(folder))
        journal.save_blob("session", b"\xc1")
        with pytest.raises(StateError) as caught:
            await world.device("d0").resume_async()
        assert caught.value.reason == "session-unreadable"
        assert await world.device("d0").resume_async() == RunResult()
