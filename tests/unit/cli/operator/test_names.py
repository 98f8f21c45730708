"""Keys and names at the command line: an error speaks of what was named, and of what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secagg_cli.main import app
from secagg_cli.operator.devices import device_key
from secagg_cli.operator.enroll import parse_partner_key
from secagg_cli.output import CommandError

KEY = "ab" * 32


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("g" * 64, "'g' is not a digit"),
        ("ab" * 31 + "a-", "'-' is not a digit"),
        (KEY[:-1], "63 hex digits"),
        (KEY + "00", "66 hex digits"),
        ("bundles/device-01.json", "device-01.json"),
        ("\xe4" * 64, "is not a digit"),
        ("ab cd" * 20, "' ' is not a digit"),
    ],
)
def test_a_key_that_cannot_be_one_is_told_by_what_was_found(text: str, found: str) -> None:
    for read, reason in ((device_key, "device-key"), (parse_partner_key, "partner-key")):
        with pytest.raises(CommandError) as caught:
            read(text)
        assert caught.value.reason == reason
        assert "64 hex digits; this is" in caught.value.message
        assert found in caught.value.message
        assert caught.value.remedy


def test_a_file_in_the_place_of_a_key_is_told(tmp_path: Path) -> None:
    file = tmp_path / "partner.key"
    file.touch()
    with pytest.raises(CommandError, match="the name of a file"):
        parse_partner_key(str(file))


def test_white_space_and_case_of_a_key_are_no_matter() -> None:
    assert parse_partner_key(f" {KEY.upper()}\n") == bytes.fromhex(KEY)


def test_a_bundle_that_is_not_there_is_not_taken_for_a_key(tmp_path: Path) -> None:
    key, bundle = str(tmp_path / "p.key"), str(tmp_path / "device-01.json")
    runner = CliRunner()
    assert runner.invoke(app, ["partner", "key", key]).exit_code == 0
    arguments = ["partner", "revoke", "--partner-key", key, bundle, "--format", "json"]
    done = runner.invoke(app, arguments)
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == "device-key"
    assert bundle in error["message"]
    assert "bundle" in error["remedy"]


def test_evidence_that_is_not_there_is_told(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        done = CliRunner().invoke(app, ["device", "verify", str(place), "--format", "json"])
        assert (done.exit_code, json.loads(done.stdout)["error"]["reason"]) == (
            2,
            "evidence-unreadable",
        )
