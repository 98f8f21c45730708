"""``secagg forget``: what it deletes, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client_sdk.enrolment import save_bundle
from secagg_cli.main import app
from tests.kits.commands import invoke
from tests.kits.data_accounts import NOW_S, ONE, Folder, new_bundle


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("time.time", lambda: NOW_S)
    return tmp_path / "home" / "secagg"


def device(tmp_path: Path, home: Path, not_after: int = 4_000_000_000) -> tuple[Path, Folder]:
    made = new_bundle(not_after=not_after)
    save_bundle(tmp_path / "bundle.json", made)
    folder = Folder(tmp_path / "state", "journal", made, registry=home / "data")
    folder.open().debit(ONE, bytes(32), "c")
    folder.journal.save_blob("checkpoint-x", b"as beside any charge")
    return tmp_path / "bundle.json", folder


@pytest.mark.parametrize("not_after", [4_000_000_000, int(NOW_S) - 1])
def test_a_device_is_forgotten_also_after_its_certificate_ended(
    tmp_path: Path, home: Path, not_after: int
) -> None:
    bundle, folder = device(tmp_path, home, not_after)
    told = invoke("forget", str(bundle), "--state", str(folder.path), "--data-id", "journal")
    assert (told["account"], told["charges"], told["kept"]) == ("data", {"one": 1}, [])
    assert str(bundle) in told["removed"]
    assert any("for ever" in said for said in told["lasting"])
    assert not bundle.exists()
    assert not folder.path.exists()


def test_text_says_what_stays_and_what_cannot_be_undone(tmp_path: Path, home: Path) -> None:
    bundle, folder = device(tmp_path, home)
    ran = CliRunner().invoke(app, ["forget", str(bundle), "--state", str(folder.path)])
    assert ran.exit_code == 0
    assert "still counts" in ran.stdout
    assert "This cannot be undone:" in ran.stdout


def test_an_account_on_which_others_count_is_told(tmp_path: Path, home: Path) -> None:
    bundle, folder = device(tmp_path, home)
    Folder(tmp_path / "other", "journal", registry=home / "data").open()
    arguments = ["forget", str(bundle), "--state", str(folder.path), "--also-account"]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 1
    assert "account-shared" in ran.stderr
    assert str(tmp_path / "other") in ran.stderr
    assert bundle.exists()
