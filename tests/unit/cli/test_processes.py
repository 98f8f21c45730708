"""Children never outlive their parent, however it ends."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from secagg_cli.processes import Children

# A parent that starts `secagg join` on a named pipe as data file: the child blocks in open().
_PARENT = """
import sys
from pathlib import Path
from secagg_cli.processes import Children
folder = Path(sys.argv[1])
with Children() as children:
    child = children.start(
        ["join", "no-bundle", "--task", "t", "--data", str(folder / "pipe")], folder / "log"
    )
    print(child.pid, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def parent(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_PARENT), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process, tmp_path
    process.kill()
    process.wait()


def has_ended(child: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(child, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def child_at_work(process: subprocess.Popen[str], folder: Path) -> int:
    """A handle of the child once it has opened the pipe, where it blocks."""
    child = os.pidfd_open(int(process.stdout.readline()))
    while not has_ended(child, 0.02):
        with contextlib.suppress(OSError):  # ENXIO until the other end is open
            os.open(folder / "pipe", os.O_WRONLY | os.O_NONBLOCK)
            return child
    pytest.fail((folder / "log").read_text())


def test_a_child_dies_with_a_parent_that_is_killed(parent) -> None:
    process, folder = parent
    child = child_at_work(process, folder)
    process.send_signal(signal.SIGKILL)
    assert has_ended(child, 30)


def test_leaving_the_context_ends_the_children(parent) -> None:
    process, folder = parent
    child = child_at_work(process, folder)
    process.stdin.write("\n")
    process.stdin.flush()
    assert has_ended(child, 30)
    assert process.wait() == 0


def test_kill_ends_a_child_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with Children() as children:
        child = children.start(
            ["join", "b", "--task", "t", "--data", str(tmp_path / "pipe")], tmp_path / "log"
        )
        assert children.pids() == [child.pid]
        children.kill(child)
        assert child.returncode == -signal.SIGKILL
        assert children.pids() == []


def test_children_inherit_none_of_the_user_s_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database of a real service must not become the demonstration's."""
    monkeypatch.setenv("SECAGG_DATABASE_URL", "postgresql+asyncpg://production")
    os.mkfifo(tmp_path / "pipe")
    with Children() as children:
        child = children.start(
            ["join", "b", "--task", "t", "--data", str(tmp_path / "pipe")],
            tmp_path / "log",
            {"SECAGG_TORCH_THREADS": "1"},
        )
        environment = b""
        while not environment:  # a process that has just begun shows none for a moment
            assert child.poll() is None
            environment = Path(f"/proc/{child.pid}/environ").read_bytes()
        assert b"production" not in environment
        assert b"SECAGG_TORCH_THREADS=1" in environment
