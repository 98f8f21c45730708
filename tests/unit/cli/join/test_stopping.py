"""Ctrl-C and SIGTERM stop a device in order; the second time it ends at once."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import client_sdk
from secagg_cli.join.stopping import stop_on_signals
from tests.kits.commands import invoke

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_asks_and_the_second_ends(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    # A shell that runs the tests in the background has children ignore Ctrl-C.
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _ask_twice(number, capfd)
    finally:
        signal.signal(signal.SIGINT, found)


def _ask_twice(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(each) for each in NUMBERS]
    with stop_on_signals() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        assert "Stopping" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_a_signal_that_is_ignored_stays_so_and_other_threads_install_nothing() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
    found: list[Any] = []

    def elsewhere() -> None:
        with stop_on_signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("pending", [True, False])
def test_a_stopped_join_tells_what_was_done_and_whether_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pending: bool
) -> None:
    def run(*_: object, stop: threading.Event, **__: object) -> client_sdk.RunResult:
        signal.raise_signal(signal.SIGTERM)
        return client_sdk.RunResult(stopped=stop.is_set(), pending=pending, epsilon=2.0)

    client = SimpleNamespace(run=run, state_dir=tmp_path)
    monkeypatch.setattr(client_sdk.Client, "from_bundle", lambda *_, **__: client)
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    words = ("join", str(tmp_path / "b.json"), "--data", str(data), "--task", "t")
    told = invoke(*words, code=130)
    assert (told["error"]["reason"], told["epsilon"]) == ("interrupted", 2.0)
    assert ("run again" in str(told["error"]["remedy"])) == pending
