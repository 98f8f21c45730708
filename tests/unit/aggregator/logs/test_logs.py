"""The operator's log has the cause of what failed, and no secret."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path
from typing import TextIO

import pytest
import sqlalchemy as sa

from aggregator.errors import DatabaseAway
from aggregator.logs import configure, failures, get_logger
from aggregator.store.urls import address, parsed_url
from tests.kits.log_lines import lines


def test_a_failure_is_logged_with_its_cause_and_without_local_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(value: str) -> None:
        raise OSError("the disk is full")

    try:
        fails("".join(("pl", "anted")))
    except OSError:
        get_logger("test").exception("commit-failed", cohort="c")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["cohort"]) == ("commit-failed", "error", "c")
    assert "OSError: the disk is full" in line["exception"]
    assert "planted" not in line["exception"]


def test_what_did_not_fail_is_logged_without_a_cause(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("test").error("commit-failed", payload="secret")
    line = json.loads(capsys.readouterr().err)
    assert "exception" not in line
    assert line["payload"] == "<redacted>"


def test_a_failure_of_the_database_is_its_cause_and_frames_of_our_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        with sa.create_engine("sqlite://").connect() as connection:
            connection.execute(sa.text("SELECT 1 FROM nowhere"))
    except sa.exc.OperationalError:
        get_logger("test").exception("failed")
    line = json.loads(capsys.readouterr().err)
    assert (line["error"], line["message"]) == (
        "sqlite3.OperationalError",
        "no such table: nowhere",
    )
    assert "sqlalchemy" not in line.get("exception", "")


def test_a_server_that_was_stopped_reads_like_one_and_no_password_is_told() -> None:
    url = parsed_url("postgresql://user:planted@/db?host=/run/pg&password=planted")
    away = DatabaseAway(address(url), FileNotFoundError(2, "No such file or directory"))
    assert str(away) == (
        "postgresql:///run/pg/db did not answer: "
        "no server listens at its Unix socket (FileNotFoundError)"
    )
    assert address(parsed_url("postgresql://user:planted@host:5433/db")) == (
        "postgresql://host:5433/db"
    )


def closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("name", ["full", "closed", "none"])
def test_a_line_that_cannot_be_written_is_counted_and_raises_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full")
    if name == "full" and not full.exists():
        pytest.skip("this system has no device that is always full")
    stream = {"full": lambda: full.open("w"), "closed": closed, "none": lambda: None}[name]()
    before = failures._value.get()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        get_logger("test").error("commit-failed")
        configure()
        logging.getLogger("asyncio").error("what a library says")
        if stream is not None:
            patch.setattr(stream, "close", lambda: None)
    assert failures._value.get() == before + 2


def test_a_line_that_cannot_be_made_is_told_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("planted")

    get_logger("test").error("commit-failed", exc_info=Mute())
    configure()
    logging.getLogger("asyncio").error("two of %s are %s", *(1,))
    made, library = lines(capsys)
    assert (made["event"], made["of_event"]) == ("line-not-made", "commit-failed")
    assert library["event"] == "two of %s are %s"
