"""The demo's devices: each a process of ``secagg join`` with a folder of its own."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secagg_cli.output import CommandError
from secagg_cli.processes import Children

# Events at which a device waits for the conductor: back from the dead, about to mask, vector sent.
HOLD_AT = ("resumed", "masking", "uploaded")
EXIT = "exit"
_LOG_TAIL_CHARACTERS = 2_000
# All devices share this machine's cores; threads of theirs would only disturb each other.
_ONE_THREAD = {"SECAGG_TORCH_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Report:
    """What a device's process said: an event of the SDK, or ``exit`` with its code.

    ``life`` numbers the device's processes from 1, so that a dead one's last words are not taken
    for the living one's.
    """

    device: int
    life: int
    kind: str
    session: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class DemoDevice:
    """One device through all its deaths.

    ``folder`` keeps ``bundle.json``, ``data.jsonl``, the journal (``state``) and ``device.log``.
    """

    def __init__(
        self,
        number: int,
        name: str,
        folder: Path,
        options: list[str],
        children: Children,
        reports: queue.SimpleQueue[Report],
    ) -> None:
        self.number = number
        self.name = name
        self.folder = folder
        self.life = 0
        self._options = options
        self._children = children
        self._reports = reports
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self, *, preload: bool = False) -> None:
        """``preload``: load the model at once. A device that is only to finish its masking does
        without, and imports no torch for it."""
        self.life += 1
        arguments = [
            "join",
            str(self.folder / "bundle.json"),
            "--data",
            str(self.folder / "data.jsonl"),
            "--state",
            str(self.folder / "state"),
            "--events",
            "--hold",
            ",".join(HOLD_AT),
            *self._options,
            *(["--preload"] if preload else []),
        ]
        self._process = self._children.start(arguments, self.folder / "device.log", _ONE_THREAD)
        threading.Thread(target=self._listen, args=(self._process, self.life), daemon=True).start()

    def go(self) -> None:
        """Let the device go on from the event at which it is held."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # its exit is reported by itself
                self._process.stdin.write("\n")
                self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL, as a crash or an empty battery would do it."""
        if self._process is not None:
            self._children.kill(self._process)
            self._process = None

    def forget(self) -> None:
        """The process has ended by itself."""
        self._process = None

    def log_tail(self) -> str:
        log = self.folder / "device.log"
        return log.read_text("utf-8", "replace")[-_LOG_TAIL_CHARACTERS:] if log.exists() else ""

    def _listen(self, process: subprocess.Popen[str], life: int) -> None:
        assert process.stdout is not None  # noqa: S101  opened with a pipe
        with contextlib.suppress(ValueError, OSError):  # closed by kill()
            for line in process.stdout:
                self._reports.put(self._parse(line, life))
        self._reports.put(Report(self.number, life, EXIT, detail={"code": process.wait()}))

    def _parse(self, line: str, life: int) -> Report:
        try:
            detail = json.loads(line)
            kind, session = detail.pop("event"), detail.pop("session")
            return Report(self.number, life, kind, session, detail)
        except (ValueError, KeyError, TypeError, AttributeError):
            return Report(self.number, life, "unreadable", detail={"line": line.strip()})


def device_failed(device: DemoDevice, why: str) -> CommandError:
    """The error that shows the end of the device's own log."""
    return CommandError(
        "device-failed",
        f"Device {device.number + 1} ({device.name}) {why}. Its log ends:\n{device.log_tail()}",
        remedy=f"The whole log is {device.folder / 'device.log'}.",
    )
