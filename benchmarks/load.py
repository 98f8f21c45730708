"""The aggregator under load: real SDK devices over loopback HTTP, everything checked on the way.

    python -m benchmarks.load cohort --devices 500
    python -m benchmarks.load tasks --tasks 5 --devices 20 --rounds 2
    python -m benchmarks.load soak --devices 50 --rounds 30
    python -m benchmarks.load vector --devices 6 --length 100000000
    python -m benchmarks.load polls --polls 1000
    python -m benchmarks.load ledger --records 100000

The service is a process of its own (SQLite on disk); ``client_sdk.Client`` objects with sealed
journals are spread over a few processes. Device n adds 1 to every coordinate and 2 to coordinate n,
so a sum names its contributors. Every version's sum is compared with the record of who is in it,
and the ledger is verified from its files while the load lasts and at its end. What does not come
out as it should ends the command with status 1. ``cpu_s`` of the service counts from the first
check-in to the last receipt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.service import TOKEN, Service
from secagg_cli.network import go_straight_to

FAIR = 2.0  # of tasks that begin together the last ends within so many times the first's seconds
_HEADERS = {"Authorization": f"Bearer {TOKEN}"}
_MIB = 1 << 20


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
    whole = np.rint(released)
    if np.abs(released - whole).max() > 0.4:  # rounding to the grid of the ring
        raise ValueError("the coordinates are no whole numbers")
    count = whole[devices] if len(whole) > devices else whole.min()
    marks = whole[:devices] - count
    if (whole[devices:] != count).any() or not np.isin(marks, (0, 1)).all():
        raise ValueError("the coordinates do not agree")
    if marks.sum() != count:
        raise ValueError(f"{count:g} vectors of {marks.sum():g} devices")
    return {int(number) for number in np.flatnonzero(marks)}


# -- devices ------------------------------------------------------------------------------------


def hold_devices(
    pipe: Connection, places: Sequence[tuple[str, int, bytes]], rounds: int, folder: str
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
    )
    fleet = [
        Client.from_bundle(
            msgspec.json.decode(bundle, type=EnrolmentBundle),
            policy=policy,
            state_dir=Path(folder) / f"{task}-{number}",
            transport=TransportSettings(patience_s=600.0, request_s=300.0, transfer_s=600.0),
            settings=ParticipantSettings(opening_s=600.0),
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
    wait_s = 600.0
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
                    report_s=wait_s,
                    share_s=wait_s,
                    check_s=wait_s,
                    masked_input_s=wait_s,
                    confirm_s=wait_s,
                    unmask_s=wait_s,
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
    for part in range(size.processes):
        here, there = context.Pipe()
        own = places[part :: size.processes]
        process = context.Process(target=hold_devices, args=(there, own, size.rounds, folder))
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
        "service_peak_mib": round(service.peak_bytes() / _MIB, 1),
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


# -- other loads --------------------------------------------------------------------------------


async def long_polls(service: Service, count: int, hold_s: float) -> dict[str, Any]:
    """``count`` devices wait for a model that does not come, while another asks for health."""
    from client_sdk.network.transport import Transport
    from secagg.access_token import issue_access_token
    from secagg.http_api import EnrolmentBundle
    from secagg.secret import Secret

    places, _ = await set_up(service.url, Size(1, count, 1, 16, 1))
    admin = service.admin_url
    waited: list[float] = []
    async with AsyncExitStack() as stack:
        offers = []
        began = time.time()
        for task, _, encoded in places:
            bundle = msgspec.json.decode(encoded, type=EnrolmentBundle)

            def token(now_s: int, bundle: EnrolmentBundle = bundle) -> str:
                return issue_access_token(
                    Secret(bundle.identity_seed), bundle.certificate, bundle.task_key, now_s
                )

            transport = await stack.enter_async_context(Transport(service.url, token))
            offers.append(asyncio.create_task(transport.offer(task, 0, hold_s)))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        await asyncio.sleep(hold_s / 3)
        descriptors = len(os.listdir(f"/proc/{service.process.pid}/fd"))
        while not any(offer.done() for offer in offers):
            at = time.perf_counter()
            async with http.get(f"{admin}/healthz") as answer:
                await answer.read()
            waited.append(time.perf_counter() - at)
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*offers, return_exceptions=True)
        seconds = time.time() - began
    p50, p99 = np.percentile(waited, (50, 99))
    return {
        "polls": count,
        "seconds": round(seconds, 2),
        "health_checks": len(waited),
        "health_p50_ms": round(1e3 * p50, 2),
        "health_p99_ms": round(1e3 * p99, 2),
        "descriptors": descriptors,
        "service_peak_mib": round(service.peak_bytes() / _MIB, 1),
        "service_cpu_ms_per_poll": round(1e3 * service.cpu_s() / count, 2),
        "wrong": [str(error) for error in answers if isinstance(error, BaseException)][:5]
        + ([] if descriptors >= count else [f"{descriptors} descriptors for {count} polls"]),
        "load": round(os.getloadavg()[0], 2),
    }


async def grow_ledger(folder: Path, records: int, at_once: int) -> dict[str, Any]:
    """A ledger of ``records`` decisions, ``at_once`` in each transaction, on SQLite."""
    from aggregator.service import Service as Replica
    from aggregator.settings.options import Settings
    from dp.ledger.records import membership_record

    replica = Replica(Settings.load(data_dir=folder, operator_token=TOKEN))
    core, ledger = replica.core, replica.ledger
    await core.database.prepare()
    await ledger.start()
    append_s = publish_s = 0.0
    wrong: list[str] = []
    published = 0
    cpu_s = time.process_time()
    for first in range(0, records, at_once):
        number = min(at_once, records - first)
        new = [
            membership_record(
                "banned",
                1_700_000_000,
                cause="operator",
                task="",
                cohort=b"",
                device=os.urandom(32),
            )
            for _ in range(number)
        ]
        at = time.perf_counter()
        async with core.database.write() as connection:
            await ledger.append(connection, new)
        appended = time.perf_counter()
        await ledger.publish()
        append_s += appended - at
        publish_s += time.perf_counter() - appended
        published += 1
    cpu_s = time.process_time() - cpu_s
    at = time.perf_counter()
    wrong += problems_of_ledger(folder, ledger.verifier)
    verify_s = time.perf_counter() - at
    size = await ledger.size()
    if size != records:
        wrong.append(f"{size} leaves")
    database = database_bytes(folder)
    at = time.perf_counter()
    await ledger.publish(everything=True)  # what a start does
    start_s = time.perf_counter() - at
    await core.database.close()
    return {
        "records": records,
        "append_ms": round(1e3 * append_s / records, 3),
        "publish_ms": round(1e3 * publish_s / published, 3),
        "append_and_publish_cpu_ms_per_record": round(1e3 * cpu_s / records, 3),
        "start_s": round(start_s, 2),
        "verify_s": round(verify_s, 2),
        "database_bytes_per_record": round(database / records),
        "wrong": wrong[:5],
        "load": round(os.getloadavg()[0], 2),
    }


# -- the command --------------------------------------------------------------------------------


def main() -> None:
    go_straight_to("127.0.0.1")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    scenarios = parser.add_subparsers(dest="scenario", required=True)

    def scenario(name: str, words: str, **defaults: int) -> argparse.ArgumentParser:
        found = scenarios.add_parser(name, help=words)
        for option, default in defaults.items():
            found.add_argument(f"--{option.replace('_', '-')}", type=int, default=default)
        return found

    fleet = {"length": 100_000, "processes": 2}
    scenario("cohort", "one large cohort", devices=500, rounds=1, **fleet)
    scenario("tasks", "tasks side by side: fair", tasks=5, devices=20, rounds=2, **fleet)
    scenario("soak", "round after round: slopes", devices=50, rounds=30, **fleet)
    scenario(
        "vector", "a long vector: memory", devices=6, rounds=1, length=100_000_000, processes=6
    )
    scenario("polls", "devices that wait", polls=1_000, hold_s=25)
    scenario("ledger", "many records", records=10_000, at_once=10)
    given = parser.parse_args()
    if given.scenario == "ledger":
        with tempfile.TemporaryDirectory() as folder:
            result = asyncio.run(grow_ledger(Path(folder) / "s", given.records, given.at_once))
    elif given.scenario == "polls":
        with tempfile.TemporaryDirectory() as folder:
            service = Service(Path(folder) / "s", None)
            try:
                result = asyncio.run(long_polls(service, given.polls, given.hold_s))
            finally:
                service.stop()
    else:
        tasks = getattr(given, "tasks", 1)
        result = drive(Size(tasks, given.devices, given.rounds, given.length, given.processes))
        first_s, last_s = result["first_and_last_task_s"]
        if last_s > FAIR * first_s:
            result["wrong"].append("the last task took more than twice the first one's time")
        if given.scenario != "soak":
            del result["samples"], result["per_round"]
    print(json.dumps(result, indent=2))
    if result["wrong"]:
        raise SystemExit("the load did not come out as it should have")


if __name__ == "__main__":
    main()
