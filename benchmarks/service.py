"""The aggregator under one cohort of real devices over loopback HTTP.

    python benchmarks/service.py --clients 200 --length 100000 --dropout 0.1

The service is a process of its own (``python -m aggregator.main``, SQLite on disk); the devices are
``client_sdk.Client`` objects with sealed journals, spread over a few processes. Each contributes a
fixed vector. Those that drop vanish after the masking set is fixed, before their vector: the most
expensive moment, since their mask secrets must be opened. The sum is compared with the true one.

``--profile FILE`` samples the service's threads (Linux) and prints where its time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np

from secagg_cli.network import go_straight_to

SELF = Path(__file__).resolve()
sys.path.insert(0, str(SELF.parent.parent))

TOKEN = "operator-of-the-benchmark"  # noqa: S105  of a service that lives for a minute
TASK = "statistics"


class Vanished(Exception):
    """A device that the script told to drop."""


class Constant:
    """Contributes its own number in every coordinate."""

    def __init__(self, number: int) -> None:
        self.number = number

    def contribute(self, job: Any) -> Mapping[str, np.ndarray]:
        values = np.full(job.manifest.data_length, float(self.number % 7))
        return {job.manifest.segments[0].name: values}


def devices(
    pipe: Connection, bundles: list[bytes], numbers: list[int], drops: set[int], folder: str
) -> None:
    """A process full of devices; waits for the word, then runs them all to their ends."""
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
    transport = TransportSettings(patience_s=300.0, request_s=120.0)
    times: dict[str, list[float]] = {}

    def client(number: int, bundle: bytes) -> Client:
        def on_event(event: Any) -> None:
            times.setdefault(event.kind, []).append(time.time())
            if event.kind == "masking" and number in drops:
                raise Vanished

        return Client.from_bundle(
            msgspec.json.decode(bundle, type=EnrolmentBundle),
            policy=policy,
            state_dir=Path(folder) / str(number),
            on_event=on_event,
            transport=transport,
            settings=ParticipantSettings(opening_s=300.0),
        )

    fleet = [client(number, bundle) for number, bundle in zip(numbers, bundles, strict=True)]
    pipe.send("ready")
    pipe.recv()

    async def run() -> list[Any]:
        return await asyncio.gather(
            *(
                one.run_async(Constant(number), task=TASK, rounds=1)
                for number, one in zip(numbers, fleet, strict=True)
            ),
            return_exceptions=True,
        )

    outcomes = asyncio.run(run())
    released = sum(bool(getattr(outcome, "releases", ())) for outcome in outcomes)
    failures = [
        f"{type(o).__name__}: {o}"
        for o in outcomes
        if isinstance(o, BaseException) and not isinstance(o, Vanished)
    ]
    pipe.send(
        {"released": released, "failures": failures, "times": times, "cpu_s": sum(os.times()[:2])}
    )


class Service:
    """The aggregator's process."""

    def __init__(self, folder: Path, profile: Path | None) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(SELF.parent.parent),
            "SECAGG_DATA_DIR": str(folder),
            "SECAGG_PORT": "0",
            "SECAGG_ADMIN_PORT": "0",
            "SECAGG_OPERATOR_TOKEN": TOKEN,
            "SECAGG_LOG_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "aggregator.main"]
        if profile is not None:
            command = [sys.executable, str(SELF), "--serve-sampled", str(profile.resolve())]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        listening = json.loads(line)["listening"]
        self.url: str = listening["url"]
        self.admin_url: str = listening["admin_url"]

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=30)


async def set_up(url: str, arguments: argparse.Namespace, drops: int) -> list[bytes]:
    """Make the partner, the task and one enrolment bundle per device."""
    from client_sdk.enrolment import create_bundle, new_partner_key
    from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, SegmentSpec, TaskSpec

    clients, wait_s = arguments.clients, arguments.deadline
    spec = TaskSpec(
        task=TASK,
        algorithm="sum",
        privacy="none",
        segments=(SegmentSpec(name="values", length=arguments.length, clip=1e4),),
        cohort=CohortSpec(
            size_min=clients, size_max=clients, survivors_min=clients - drops, corrupt_max=0
        ),
        deadlines=DeadlineSpec(
            report_s=600.0,
            share_s=120.0,
            check_s=120.0,
            masked_input_s=wait_s,
            confirm_s=120.0,
            unmask_s=120.0,
        ),
        budget=BudgetSpec(max_epsilon=None, releases_max=1),
    )
    partner = new_partner_key()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        for path, body in (("partners", {"name": "p", "key": partner.key}), ("tasks", spec)):
            async with http.post(
                f"{url}/v1/operator/{path}", data=msgspec.json.encode(body)
            ) as answer:
                if answer.status != 200:
                    raise SystemExit(await answer.text())
        async with http.get(f"{url}/v1/server") as answer:
            info = await answer.json()
    task_key = msgspec.convert(info["task_key"], type=bytes)
    return [
        msgspec.json.encode(
            create_bundle(url, task_key, info["ledger_verifier"], partner.seed, 4_000_000_000)
        )
        for _ in range(clients)
    ]


async def released_sum(url: str) -> np.ndarray:
    import safetensors.numpy

    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{url}/v1/operator/tasks/{TASK}/model") as answer,
    ):
        vector: np.ndarray = safetensors.numpy.load(await answer.read())["vector"]
        return vector


def main() -> None:
    go_straight_to("127.0.0.1")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--length", type=int, default=100_000)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--processes", type=int, default=2, help="that hold the devices")
    parser.add_argument(
        "--deadline", type=float, default=20.0, help="seconds that step 3 waits for the dropped"
    )
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--serve-sampled", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_sampled:
        import sampling

        from aggregator.main import serve
        from aggregator.settings.options import Settings

        sampling.start(arguments.serve_sampled)
        serve(Settings.load())
        return
    if arguments.profile:
        from client_sdk.outputs import check_file

        check_file(arguments.profile)
    drops = round(arguments.clients * arguments.dropout)
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder) / "service", arguments.profile)
        try:
            result = run(service, arguments, drops, folder)
        finally:
            service.stop()
    print(json.dumps(result, indent=2))
    if arguments.profile:
        counts = json.loads(arguments.profile.read_text())
        total = sum(counts.values())
        for place, count in list(counts.items())[:25]:
            print(f"{count / total:6.1%}  {place}", file=sys.stderr)
    if not result["exact"] or result["failures"] or result["released"] != result["clients"] - drops:
        raise SystemExit("the cohort did not come out as it should have")


def run(service: Service, arguments: argparse.Namespace, drops: int, folder: str) -> dict[str, Any]:
    bundles = asyncio.run(set_up(service.url, arguments, drops))
    dropping = {arguments.clients * number // drops for number in range(drops)} if drops else set()
    context = multiprocessing.get_context("spawn")
    workers = []
    for part in range(arguments.processes):
        numbers = list(range(part, arguments.clients, arguments.processes))
        here, there = context.Pipe()
        process = context.Process(
            target=devices,
            args=(there, [bundles[n] for n in numbers], numbers, dropping, folder),
        )
        process.start()
        workers.append((process, here))
    for _, pipe in workers:
        pipe.recv()
    before, start = service.cpu_s(), time.time()
    for _, pipe in workers:
        pipe.send("go")
    reports = [pipe.recv() for _, pipe in workers]
    seconds, cpu_s = time.time() - start, service.cpu_s() - before
    for process, _ in workers:
        process.join()
    kinds = sorted({kind for report in reports for kind in report["times"]})
    last = {k: max(t for r in reports for t in r["times"].get(k, [0.0])) - start for k in kinds}
    expected = sum(n % 7 for n in range(arguments.clients) if n not in dropping)
    total = asyncio.run(released_sum(service.url))
    return {
        "clients": arguments.clients,
        "length": arguments.length,
        "dropped": drops,
        "released": sum(report["released"] for report in reports),
        "exact": bool(np.allclose(total, expected, rtol=1e-3)),
        "seconds": round(seconds, 2),
        "waited_for_dropped_s": arguments.deadline if drops else 0.0,
        "service_cpu_s": round(cpu_s, 2),
        "devices_cpu_s": round(sum(report["cpu_s"] for report in reports), 2),
        "service_peak_bytes": service.peak_bytes(),
        "last_event_s": {k: round(t, 2) for k, t in sorted(last.items(), key=lambda kv: kv[1])},
        "failures": [failure for report in reports for failure in report["failures"]][:5],
        "load": round(os.getloadavg()[0], 2),
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
