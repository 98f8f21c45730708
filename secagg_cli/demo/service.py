"""The demo's aggregator: a process of ``secagg serve`` on loopback with SQLite."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from secagg_cli.operator.client import Operator, server_info
from secagg_cli.output import CommandError
from secagg_cli.processes import Children

_START_TIMEOUT_S = 60.0
_LOG_TAIL_CHARACTERS = 2_000


class Service:
    """One aggregator through all its restarts; the first start picks a free port and keeps it."""

    def __init__(self, data_dir: Path, children: Children) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.port = 0
        self.verifier = ""
        self._children = children
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def ledger_folder(self) -> Path:
        return self.data_dir / "ledger"

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            CommandError: ``service-failed`` with the end of its log.
        """
        self.launch()
        self.wait()

    def launch(self) -> None:
        """The first half of :meth:`start`."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        arguments = ["serve", "--data-dir", str(self.data_dir), "--host", "127.0.0.1"]
        arguments += ["--port", str(self.port), "--admin-port", "0"]
        self._process = self._children.start(arguments, self.log)

    def wait(self) -> None:
        """The second half of :meth:`start`."""
        if self._process is None:
            raise self._failure("was not launched")
        self.port = self._announced_port(self._process)
        self.verifier = server_info(self.url).ledger_verifier

    def kill(self) -> None:
        """SIGKILL: what a power cut does."""
        if self._process is not None:
            self._children.kill(self._process)
            self._process = None

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None:
            self._children.end(self._process)
            self._process = None

    def failed(self, within_s: float = 0.0) -> CommandError | None:
        """The error to raise if the process has ended by itself, or does so within that time."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None
        return self._failure(f"ended with code {code}")

    def operator(self) -> Operator:
        return Operator.at(self.url, self.data_dir / "operator.token")

    def _announced_port(self, process: subprocess.Popen[str]) -> int:
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def listen() -> None:
            for line in process.stdout or ():
                lines.put(line)
            lines.put(None)

        threading.Thread(target=listen, daemon=True).start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                raise self._failure(f"ended with code {process.wait()}")
            try:
                return int(urlsplit(json.loads(line)["listening"]["url"]).port or 0)
            except (ValueError, KeyError, TypeError):
                continue
        raise self._failure(f"did not start within {_START_TIMEOUT_S:.0f} s")

    def _failure(self, why: str) -> CommandError:
        tail = ""
        if self.log.exists():
            tail = self.log.read_text("utf-8", "replace")[-_LOG_TAIL_CHARACTERS:]
        return CommandError(
            "service-failed",
            f"The aggregator {why}. Its log ends:\n{tail}",
            remedy=f"The whole log is {self.log}.",
        )
