"""The aggregator under load: real SDK devices over loopback HTTP, everything checked on the way.

    python -m benchmarks.load cohort --devices 500
    python -m benchmarks.load tasks --tasks 5 --devices 20 --rounds 2
    python -m benchmarks.load soak --devices 50 --rounds 30
    python -m benchmarks.load vector --devices 6 --length 100000000
    python -m benchmarks.load polls --polls 1000
    python -m benchmarks.load ledger --records 100000
    python -m benchmarks.load scrape --cohorts 100000

The service is a process of its own (SQLite on disk); ``client_sdk.Client`` objects with sealed
journals are spread over a few processes (:mod:`benchmarks.fleet`). What does not come out as it
should ends the command with status 1. CPU of the service counts from the first check-in to the last
receipt, with that of the checks that ask it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fleet import MIB, Size, database_bytes, drive, problems_of_ledger, set_up
from benchmarks.service import TOKEN, Service
from secagg_cli.network import go_straight_to

FAIR = 2.0  # of tasks that begin together the last ends within so many times the first's seconds


# -- other loads --------------------------------------------------------------------------------


async def long_polls(service: Service, count: int, hold_s: float) -> dict[str, Any]:
    """``count`` devices wait for a model that does not come, while another asks for health."""
    from client_sdk.network.transport import Transport
    from secagg.access_token import issue_access_token
    from secagg.http_api import EnrolmentBundle
    from secagg.secret import Secret

    places, _ = await set_up(service.url, Size(1, count, 1, 16, 1))
    admin, cpu_s = service.admin_url, service.cpu_s()
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
        "service_peak_mib": round(service.peak_bytes() / MIB, 1),
        "service_cpu_ms_per_poll": round(1e3 * (service.cpu_s() - cpu_s) / count, 2),
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
    await ledger.demand_published(everything=True)  # what a start does
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


async def scrapes(service: Service, folder: Path, number: int, times: int) -> dict[str, Any]:
    """``/metrics`` of 10 tasks with ``number`` ended cohorts, half of which released."""
    from aggregator.measures import CACHED_S
    from aggregator.views import ReleaseView

    tasks = 10
    await set_up(service.url, Size(tasks, 8, max(1, number), 16, 1))
    cohorts, releases = [], []
    for one in range(number):
        task, attempt, name = f"task{one % tasks}", one // tasks, f"{one:064x}"
        released = one // tasks % 2 == 0
        end = ("released", "released", None) if released else ("aborted", "aborted", "disk-low")
        cohorts.append((name, task, attempt, attempt, *end, 20, 8, 1.7e9, 1.7e9))
        if released:
            view = ReleaseView(
                release=attempt,
                cohort=name,
                outcome="released",
                reason=None,
                cohort_size=8,
                survivors=8,
                dropped=0,
                sum_norm=1.0,
                metrics={},
                epsilon=None,
                privacy=(),
                version=attempt,
                leaf_index=one,
                opened_at=1.7e9,
                released_at=1.7e9,
                seconds=1.0,
            )
            releases.append(
                (task, attempt, name, "released", 8, 8, one, msgspec.json.encode(view).decode())
            )
    with sqlite3.connect(folder / "secagg.db") as database:
        database.executemany(
            "INSERT INTO cohorts (cohort, task, attempt, model_version, state, phase, reason, seq,"
            " size, opened_at, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            cohorts,
        )
        database.executemany(
            "INSERT INTO releases (task, release, cohort, outcome, survivors, masking_set,"
            " leaf_index, view) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            releases,
        )
    database.close()
    took, cpu_s = [], service.cpu_s()
    async with aiohttp.ClientSession() as http:
        for _ in range(times):
            await asyncio.sleep(CACHED_S)
            at = time.perf_counter()
            async with http.get(f"{service.admin_url}/metrics") as answer:
                page = await answer.text()
            took.append(time.perf_counter() - at)
    cpu_s = service.cpu_s() - cpu_s
    shown = sum(
        float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("secagg_cohorts_total{")
    )
    return {
        "tasks": tasks,
        "cohorts": number,
        "scrape_median_ms": round(1e3 * float(np.median(took)), 1),
        "scrape_max_ms": round(1e3 * max(took), 1),
        "service_cpu_ms_per_scrape": round(1e3 * cpu_s / times, 1),
        "bytes": len(page),
        "wrong": [] if shown == number else [f"{shown:g} cohorts were counted"],
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
    long = {"length": 100_000_000, "processes": 6, "at_once": 0}
    scenario("vector", "a long vector: memory", devices=6, rounds=1, **long)
    scenario("polls", "devices that wait", polls=1_000, hold_s=25)
    scenario("ledger", "many records", records=10_000, at_once=10)
    scenario("scrape", "metrics of many ended cohorts", cohorts=10_000, times=10)
    given = parser.parse_args()
    if given.scenario == "ledger":
        with tempfile.TemporaryDirectory() as folder:
            result = asyncio.run(grow_ledger(Path(folder) / "s", given.records, given.at_once))
    elif given.scenario in ("polls", "scrape"):
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / "s"
            service = Service(home, None)
            try:
                if given.scenario == "polls":
                    load = long_polls(service, given.polls, given.hold_s)
                else:
                    load = scrapes(service, home, given.cohorts, given.times)
                result = asyncio.run(load)
            finally:
                service.stop()
    else:
        tasks = getattr(given, "tasks", 1)
        at_once = getattr(given, "at_once", 0)
        result = drive(
            Size(tasks, given.devices, given.rounds, given.length, given.processes, at_once)
        )
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
