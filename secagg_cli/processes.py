"""Child processes that never outlive their parent.

Each child leads its own process group, so that Ctrl-C reaches only the conductor, which then ends
the children in order. Should the conductor itself be killed, the kernel ends its children
(``PR_SET_PDEATHSIG``); where there is no such call, a child watches for its parent's end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

_PARENT = "SECAGG_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5


def die_with_parent() -> None:
    """In a child that :class:`Children` started: end when the parent ends. Else nothing."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    if os.getppid() != int(parent):  # it ended before the line above
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


class Children:
    """The children of one command; leaving the context ends all of them.

    Start children from the main thread only: on Linux the death of the *thread* that started a
    child ends the child.
    """

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def start(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start ``secagg ARGUMENTS``; its standard error goes to the end of ``log``.

        The child inherits the environment without this project's own variables (``SECAGG_...``:
        a database or a token of a real service does not belong in a demonstration), plus
        ``environment``.
        """
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SECAGG_")}
        own = {_PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "secagg_cli.main", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                env={**inherited, **(environment or {}), **own},
                start_new_session=True,
            )
        self._running.append(child)
        return child

    def pids(self) -> list[int]:
        return [child.pid for child in self._running if child.poll() is None]

    def kill(self, child: subprocess.Popen[str]) -> None:
        """SIGKILL, at once, with everything that the child itself has started."""
        _signal_group(child, signal.SIGKILL)
        child.wait()
        self._forget(child)

    def end(self, child: subprocess.Popen[str], timeout_s: float = 5.0) -> None:
        """Ask the child to end; kill it when it does not."""
        self._end([child], signal.SIGTERM, timeout_s)

    def _end(
        self, children: Sequence[subprocess.Popen[str]], number: int, timeout_s: float
    ) -> None:
        for child in children:
            _signal_group(child, number)
        for child in children:
            if child.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(timeout_s)
                # Its own children, if it left any; the group's id is still theirs.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
            self.kill(child)

    def _forget(self, child: subprocess.Popen[str]) -> None:
        if child in self._running:
            self._running.remove(child)
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        number = signal.SIGTERM if error is None else signal.SIGKILL
        self._end(list(self._running), number, 5.0)


def _signal_group(child: subprocess.Popen[str], number: int) -> None:
    # Unless the child was reaped, its process id, and so its group id, cannot name another's.
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP become KeyboardInterrupt, so that ``finally`` blocks run."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
