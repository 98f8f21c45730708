"""`secagg db`: the schema of a stopped service's database, at the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aggregator.keys import load_keys
from aggregator.starting import DataFolder
from aggregator.store import migrating
from secagg_cli.exit_codes import EXIT_REFUSED
from secagg_cli.main import app
from tests.kits.starting import refused
from tests.kits.upgrades import first_version


def db(data: Path, *arguments: str, code: int = 0) -> Any:
    given = ("db", *arguments, "--data-dir", str(data), "--format", "json")
    done = CliRunner().invoke(app, given)
    assert done.exit_code == code, done.output
    found = json.loads(done.stdout)
    return found["error"] if code else found


def end_cohorts(data: Path) -> None:
    with contextlib.closing(sqlite3.connect(data / "secagg.db")) as database, database:
        database.execute("UPDATE cohorts SET state = 'aborted' WHERE state = 'open'")


def test_a_database_of_before_goes_up_and_down_and_up_again(tmp_path: Path) -> None:
    data = first_version(tmp_path / "data")
    older = db(data, "check", code=EXIT_REFUSED)
    assert older["reason"] == "schema-older"
    assert "secagg db upgrade" in older["remedy"]
    assert db(data, "upgrade", "--to", "0007")["schema"] == "0007"
    assert db(data, "upgrade")["schema"] == migrating.of_code()
    found = db(data, "check")
    assert found["schema"] == found["schema_of_software"] == migrating.of_code()
    refused = db(data, "downgrade", "--to", "0002", code=EXIT_REFUSED)  # it has a cohort
    assert refused["reason"] == "cohort-open"
    assert "secagg task pause" in refused["remedy"]
    end_cohorts(data)
    assert db(data, "downgrade", "--to", "0002")["schema"] == "0002"
    assert db(data, "check", code=EXIT_REFUSED)["reason"] == "schema-older"
    assert db(data, "upgrade")["schema"] == migrating.of_code()
    for way, to in (("upgrade", "0007"), ("downgrade", "9999"), ("upgrade", "9999")):
        assert db(data, way, "--to", to, code=EXIT_REFUSED)["reason"] == "schema-unknown"


def test_no_way_down_leads_to_an_empty_database(tmp_path: Path) -> None:
    data = first_version(tmp_path / "data")
    db(data, "upgrade")
    end_cohorts(data)
    for to in ("base", "-99", "head"):
        error = db(data, "downgrade", "--to", to, code=EXIT_REFUSED)
        assert error["reason"] == "schema-unknown"
        assert f"Expected '{', '.join(migrating.known())}'" in error["message"]
    assert db(data, "check")["schema"] == migrating.of_code()


def test_what_a_service_would_make_is_not_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert db(data, "check", code=EXIT_REFUSED)["reason"] == "keys-missing"
    load_keys(data / "keys")
    assert db(data, "upgrade", code=EXIT_REFUSED)["reason"] == "database-missing"
    assert not (data / "secagg.db").exists()


@pytest.mark.parametrize("way", ["upgrade", "downgrade"])
def test_a_schema_moves_under_no_running_service_and_by_no_stranger(
    tmp_path: Path, way: str
) -> None:
    data = first_version(tmp_path / "data")
    folder = DataFolder(data)
    folder.take()
    error = db(data, way, "--to", "0002", code=EXIT_REFUSED)
    assert error["reason"] == "data-dir-in-use"
    folder.release()
    load_keys(tmp_path / "others")
    (data / "keys" / "task.key").write_bytes((tmp_path / "others" / "task.key").read_bytes())
    error = db(data, way, "--to", "0002", code=EXIT_REFUSED)
    assert error["reason"] == "keys-of-another-service"


def test_no_command_draws_a_key_for_a_database_that_is_sealed(tmp_path: Path) -> None:
    data = first_version(tmp_path / "data")
    file = data / "keys" / "sealing.keys"
    assert db(data, "check", code=EXIT_REFUSED)["reason"] == "schema-older"
    assert db(data, "upgrade", "--to", "0007")["schema"] == "0007"
    end_cohorts(data)
    db(data, "upgrade")
    file.rename(tmp_path / "away")
    assert db(data, "check", code=EXIT_REFUSED)["reason"] == "sealing-key-missing"
    for command in ("upgrade", "reseal"):
        assert db(data, command, code=EXIT_REFUSED)["reason"] == "keys-missing"
    assert db(data, "downgrade", "--to", "0009", code=EXIT_REFUSED)["reason"] in (
        "sealing-key-missing"
    )
    assert not file.exists()


def test_an_upgrade_notes_the_key_under_which_it_seals(tmp_path: Path) -> None:
    """Else a replica with another file starts, and opens nothing."""
    data = first_version(tmp_path / "data")
    db(data, "upgrade")
    (data / "keys" / "sealing.keys").write_text("ab" * 32 + "\n")
    assert db(data, "check", code=EXIT_REFUSED)["reason"] == "sealing-key-missing"
    assert asyncio.run(refused({"data_dir": data})).reason == "sealing-key-missing"
