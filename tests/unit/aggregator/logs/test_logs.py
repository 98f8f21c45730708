"""The operator's log has the cause of what failed, and no secret."""

from __future__ import annotations

import json

import pytest

from aggregator.logs import get_logger


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
