"""Fleets of real SDK devices that load one service, each sum of which is checked.

Device n adds 1 to every coordinate and 2 to coordinate n, so a sum names its contributors. Every
version's sum is compared with the record of who is in it, and the ledger is verified from its
files while the load lasts and at its end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore as SemaphoreOfProcesses
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np

from benchmarks.service import TOKEN, Service

_HEADERS = {"Authorization": f"Bearer {TOKEN}"}
MIB = 1 << 20
WAIT_S = 1_800.0  # of every step
_SLICE = 1 << 20  # coordinates that are looked at together


class Marked:
    """1 everywhere, 2 at the device's own coordinate."""

    def __init__(self, number: int) -> None:
        self._number = number

    def contribute(self, job: Any) -> Mapping[str, np.ndarray]:
        values = np.ones(job.manifest.data_length)
        values[self._number] = 2.0
        return {job.manifest.segments[0].name: values}


def members_of(released: np.ndarray, devices: int) -> set[int]:
    """Numbers of the devices in a sum of :class:`Marked` vectors.

    Raises:
        ValueError: it is not such a sum.
    """
    first = np.rint(released[:devices])
    count = np.rint(released[devices]) if len(released) > devices else first.min()
    for start in range(0, len(released), _SLICE):
        part = released[start : start + _SLICE]
        whole = np.rint(part)
        if np.abs(part - whole).max() > 0.4:  # rounding to the grid of the ring
            raise ValueError("the coordinates are not whole numbers")
        if (whole[max(0, devices - start) :] != count).any():
            raise ValueError("the coordinates do not agree")
    marks = first - count
    if not np.isin(marks, (0, 1)).all():
        raise ValueError("the coordinates do not agree")
    if marks.sum() != count:
        raise ValueError(f"{count:g} vectors of {marks.sum():g} devices")
    return {int(number) for number in np.flatnonzero(marks)}


# -- devices ------------------------------------------------------------------------------------


class Turns:
    """Lets so many devices at a time have their vector in memory. Each needs a process of its own,
    since a device that waits holds up all of its process."""

    def __init__(self, at_once: SemaphoreOfProcesses, limit_s: float) -> None:
        self._at_once = at_once
        self._limit_s = limit_s

    def follow(self, event: Any) -> None:
        if event.kind in ("training", "masking"):
            self._at_once.acquire(timeout=self._limit_s)
        elif event.kind in ("trained", "uploaded"):
            self._at_once.release()


def hold_devices(
    pipe: Connection,
    places: Sequence[tuple[str, int, bytes]],
    rounds: int,
    folder: str,
    turns: Turns | None,
) -> None:
    """A process full of devices, (task, number, bundle) each; runs them all when it is told."""
    from client_sdk import Client, ParticipantSettings, PrivacyPolicy, TransportSettings
    from secagg.http_api import EnrolmentBundle

    policy = PrivacyPolicy(
        min_cohort=2,
        min_corrupt=0,
        require=None,
        repeat_without_noise=True,  # a plain sum of made-up numbers
        max_epsilon=1e6,
        max_total_epsilon=1e6,
        max_upload_bytes=1 << 31,
        max_download_bytes=1 << 31,
    )
    fleet = [
        Client.from_bundle(
            msgspec.json.decode(bundle, type=EnrolmentBundle),
            policy=policy,
            state_dir=Path(folder) / f"{task}-{number}",
            transport=TransportSettings(patience_s=WAIT_S, request_s=300.0, transfer_s=WAIT_S),
            settings=ParticipantSettings(opening_s=WAIT_S),
            on_event=None if turns is None else turns.follow,
        )
        for task, number, bundle in places
    ]
    pipe.send("ready")
    pipe.recv()
    before_s = sum(os.times()[:2])

    async def run() -> list[Any]:
        return await asyncio.gather(
            *(
                one.run_async(Marked(number), task=task, rounds=rounds)
                for one, (task, number, _) in zip(fleet, places, strict=True)
            ),
            return_exceptions=True,
        )

    outcomes = asyncio.run(run())
    pipe.send(
        {
            "releases": sum(len(getattr(outcome, "releases", ())) for outcome in outcomes),
            "failures": [
                f"{type(o).__name__}: {o}" for o in outcomes if isinstance(o, BaseException)
            ],
            "cpu_s": sum(os.times()[:2]) - before_s,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )


# -- the service --------------------------------------------------------------------------------


@dataclass
class Size:
    """What a load is: ``rounds`` of each of ``tasks``, ``devices`` in each cohort."""

    tasks: int
    devices: int
    rounds: int
    length: int
    processes: int
    at_once: int = 0  # devices with their vector in memory; 0: all


@dataclass
class Seen:
    """What was seen of one task. ``ended_s``: from the start, of each version."""

    checked: set[int] = field(default_factory=set)
    ended_s: dict[int, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """The service's process at the end of a round; bytes, but for the descriptors."""

    round: int
    resident: int
    descriptors: int
    database: int


async def operate(
    http: aiohttp.ClientSession, url: str, path: str, body: Any = None
) -> dict[str, Any]:
    data = None if body is None else msgspec.json.encode(body)
    method = "GET" if body is None else "POST"
    async with http.request(method, f"{url}/v1/operator/{path}", data=data) as answer:
        if answer.status != 200:
            raise SystemExit(await answer.text())
        found: dict[str, Any] = await answer.json()
        return found


async def set_up(url: str, size: Size) -> tuple[list[tuple[str, int, bytes]], str]:
    """Partner, tasks and one bundle for each device; and the ledger's verifier."""
    from client_sdk.enrolment import create_bundle, new_partner_key
    from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, SegmentSpec, TaskSpec

    partner = new_partner_key()
    names = [f"task{number}" for number in range(size.tasks)]
    async with aiohttp.ClientSession(headers=_HEADERS) as http:
        await operate(http, url, "partners", {"name": "p", "key": partner.key})
        for name in names:
            spec = TaskSpec(
                task=name,
                algorithm="sum",
                privacy="none",
                segments=(SegmentSpec(name="values", length=size.length, clip=1e5),),
                cohort=CohortSpec(
                    size_min=size.devices,
                    size_max=size.devices,
                    survivors_min=max(2, size.devices * 4 // 5),
                    corrupt_max=0,
                ),
                deadlines=DeadlineSpec(
                    report_s=WAIT_S,
                    share_s=WAIT_S,
                    check_s=WAIT_S,
                    masked_input_s=WAIT_S,
                    confirm_s=WAIT_S,
                    unmask_s=WAIT_S,
                ),
                budget=BudgetSpec(max_epsilon=None, releases_max=size.rounds),
            )
            await operate(http, url, "tasks", spec)
        async with http.get(f"{url}/v1/server") as answer:
            info = await answer.json()
    task_key = msgspec.convert(info["task_key"], type=bytes)
    verifier: str = info["ledger_verifier"]
    places = [
        (
            name,
            number,
            msgspec.json.encode(
                create_bundle(url, task_key, verifier, partner.seed, 4_000_000_000)
            ),
        )
        for name in names
        for number in range(size.devices)
    ]
    return places, verifier


def database_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("secagg.db*"))


def sample(service: Service, folder: Path, number: int) -> Sample:
    process = Path(f"/proc/{service.process.pid}")
    resident = int((process / "status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    return Sample(
        number,
        resident,
        len(list((process / "fd").iterdir())),
        database_bytes(folder),
    )


def slope(samples: Sequence[Sample], name: str) -> float:
    """Of a quantity over the rounds, by least squares, without the first third."""
    late = samples[len(samples) // 3 :]
    if len(late) < 2:
        return 0.0
    rounds = [one.round for one in late]
    return float(np.polyfit(rounds, [getattr(one, name) for one in late], 1)[0])


def problems_of_ledger(folder: Path, verifier: str) -> list[str]:
    from dp.ledger.verification import verify_ledger

    def read(path: str) -> bytes | None:
        file = folder / "ledger" / path
        return file.read_bytes() if file.is_file() else None

    result = verify_ledger(read, verifier)
    return [] if result.verified else [str(problem) for problem in result.problems]


async def watch(
    service: Service, folder: Path, size: Size, began: float, verifier: str, over: asyncio.Event
) -> tuple[dict[str, Seen], list[Sample]]:
    """Check every version as soon as it is there, and the ledger behind it."""
    import safetensors.numpy

    names = [f"task{number}" for number in range(size.tasks)]
    seen = {name: Seen() for name in names}
    samples: list[Sample] = []
    last = False
    async with aiohttp.ClientSession(headers=_HEADERS) as http:
        while not last:
            last = over.is_set()  # one more look after the end
            for name in names:
                view = await operate(http, service.url, f"tasks/{name}")
                version = view["version"]
                if version == 0 or version in seen[name].checked:
                    continue
                seen[name].ended_s[version] = time.time() - began
                seen[name].checked.add(version)
                async with http.get(f"{service.url}/v1/operator/tasks/{name}/model") as answer:
                    vector = safetensors.numpy.load(await answer.read())["vector"]
                recorded = next(r for r in view["releases"] if r["version"] == version)
                try:
                    members = members_of(vector, size.devices)
                    if len(members) != recorded["survivors"]:
                        raise ValueError(f"{len(members)} in the sum, {recorded['survivors']} told")
                except ValueError as error:
                    seen[name].wrong.append(f"version {version}: {error}")
                if name == names[0]:
                    samples.append(sample(service, folder, version))
                    problems = await asyncio.to_thread(problems_of_ledger, folder, verifier)
                    seen[name].wrong += problems
            if not last:
                await asyncio.wait({asyncio.create_task(over.wait())}, timeout=0.3)
    return seen, samples


def drive(size: Size) -> dict[str, Any]:
    """Run a load to its end; figures, and under ``wrong`` what did not come out right."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "service"
        service = Service(home, None)
        try:
            places, verifier = asyncio.run(set_up(service.url, size))
            return _drive(service, home, size, places, verifier, folder)
        finally:
            service.stop()


def _drive(
    service: Service,
    home: Path,
    size: Size,
    places: Sequence[tuple[str, int, bytes]],
    verifier: str,
    folder: str,
) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    workers = []
    turns = None
    if size.at_once:
        if size.processes < size.tasks * size.devices:
            raise SystemExit("--at-once needs a process for each device")
        turns = Turns(context.Semaphore(size.at_once), WAIT_S)
    for part in range(size.processes):
        here, there = context.Pipe()
        own = places[part :: size.processes]
        process = context.Process(
            target=hold_devices, args=(there, own, size.rounds, folder, turns)
        )
        process.start()
        workers.append((process, here))
    for _, pipe in workers:
        pipe.recv()
    cpu_s, began = service.cpu_s(), time.time()
    for _, pipe in workers:
        pipe.send("go")

    async def follow() -> tuple[Any, list[Any]]:
        over = asyncio.Event()
        watching = asyncio.create_task(watch(service, home, size, began, verifier, over))
        reports = await asyncio.gather(*(asyncio.to_thread(pipe.recv) for _, pipe in workers))
        over.set()
        return await watching, reports

    (seen, samples), reports = asyncio.run(follow())
    seconds, cpu_s = time.time() - began, service.cpu_s() - cpu_s
    for process, _ in workers:
        process.join()
    wrong = [f"{name}, {text}" for name, one in seen.items() for text in one.wrong]
    wrong += problems_of_ledger(home, verifier)
    wrong += [failure for report in reports for failure in report["failures"]]
    for name, one in seen.items():
        if len(one.checked) != size.rounds:
            wrong.append(f"{name}: {len(one.checked)} of {size.rounds} versions were seen")
    released = sum(report["releases"] for report in reports)
    rounds = size.tasks * size.devices * size.rounds
    ends = [max(one.ended_s.values(), default=seconds) for one in seen.values()]
    return {
        "tasks": size.tasks,
        "devices": size.devices,
        "rounds": size.rounds,
        "length": size.length,
        "receipts": released,
        "seconds": round(seconds, 2),
        "first_and_last_task_s": [round(min(ends), 2), round(max(ends), 2)],
        "service_cpu_s": round(cpu_s, 2),
        "service_cpu_ms_per_device_and_round": round(1e3 * cpu_s / rounds, 1),
        "device_cpu_ms_per_round": round(1e3 * sum(r["cpu_s"] for r in reports) / rounds, 1),
        "device_process_peak_mib": round(max(r["peak_bytes"] for r in reports) / MIB, 1),
        "service_peak_mib": round(service.peak_bytes() / MIB, 1),
        "samples": [msgspec.to_builtins(vars(one)) for one in samples],
        "per_round": {
            "resident_kib": round(slope(samples, "resident") / 1024, 1),
            "descriptors": round(slope(samples, "descriptors"), 2),
            "database_kib": round(slope(samples, "database") / 1024, 1),
        },
        "wrong": wrong[:10],
        "load": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
    }
