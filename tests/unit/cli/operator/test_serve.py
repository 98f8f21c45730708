"""What ``secagg serve`` leaves in the log where it does not start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from secagg_cli.operator import serve as command


def test_a_refused_start_is_a_line_of_the_log_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "die_with_parent", lambda: None)
    monkeypatch.setenv("SECAGG_LOG_LEVEL", "LOUD")
    with pytest.raises(typer.Exit):
        command.serve(data_dir=tmp_path / "data")
    first, *people = capsys.readouterr().err.splitlines()
    line = json.loads(first)
    assert (line["event"], line["reason"]) == ("start-refused", "settings-invalid")
    assert "LOUD" in line["found"]
    assert "CRITICAL" in line["expected"]
    assert any("[settings-invalid]" in each for each in people)
