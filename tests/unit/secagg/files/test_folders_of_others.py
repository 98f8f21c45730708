"""A folder that a user names for what a program keeps: others' files in it are told, not joined."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aggregator.service import Service
from aggregator.settings.options import Settings
from client_sdk.accounts.registry import Registry
from client_sdk.client import Client
from client_sdk.enrolment import create_bundle, new_partner_key, save_bundle
from client_sdk.state.keystore import open_storage_key
from dp.tlog.notes import verifier_key
from secagg.errors import SecaggError
from secagg_cli.main import app

PARTNER = new_partner_key()
VERIFIER = verifier_key("ledger.test", PARTNER.key)
BUNDLE = create_bundle("http://127.0.0.1:9", PARTNER.key, VERIFIER, PARTNER.seed, 2_000_000_000)
RUNNER = CliRunner()


def client(folder: Path) -> None:
    Client.from_bundle(BUNDLE, state_dir=folder, clock=lambda: 1e9)


def service(folder: Path) -> None:
    built = Service(Settings.load(data_dir=folder))
    built.core.pool.shutdown()


def _command(*arguments: str) -> None:
    done = RUNNER.invoke(app, [*arguments, "--format", "json"])
    error = json.loads(done.stdout)["error"]
    raise SecaggError(error["reason"], error["message"], remedy=error["remedy"])


def _bundle(folder: Path) -> str:
    path = folder.with_name("bundle.json")
    save_bundle(path, BUNDLE)
    return str(path)


def recovery(folder: Path) -> None:
    _command("account", "recover", _bundle(folder), "--state", str(folder))


def joining(folder: Path) -> None:
    data = folder.with_name("rows.jsonl")
    data.write_text('{"prompt": "a", "answer": "b"}\n')
    place = ("--state", str(folder), "--data", str(data), "--task", "t")
    _command("join", _bundle(folder), *place)


def witness(folder: Path) -> None:
    _command(
        "witness", "serve", "--name", "w", "--log", VERIFIER, "--data-dir", str(folder),
        "--host", "no such host",
    )  # fmt: skip


Makes = Callable[[Path], object]
PLACES: dict[str, tuple[Makes, str]] = {
    "Client": (client, "state-folder-taken"),
    "storage key": (open_storage_key, "state-folder-taken"),
    "Registry": (Registry, "state-folder-taken"),
    "Service": (service, "data-dir-taken"),
    "account recover --state": (recovery, "state-folder-taken"),
    "join --state": (joining, "state-folder-taken"),
    "witness serve --data-dir": (witness, "witness-folder-taken"),
}
EVERY = pytest.mark.parametrize(("make", "reason"), PLACES.values(), ids=PLACES)


def listed(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@EVERY
@pytest.mark.parametrize(
    "held",
    [
        "thesis.txt",
        ".git/config",
        "photos/1.jpg",
        "account",
        "account/a.db",
        "session",
        "witness.txt",
        "models/llama.gguf",
        f"models/{'ab' * 32}",
        "data/rows.csv",
        "data",
        "owner",
    ],
)
def test_a_folder_of_others_is_refused_before_anything_is_written(
    tmp_path: Path, make: Makes, reason: str, held: str
) -> None:
    folder = tmp_path / "folder"
    file = folder / held
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    before = listed(folder)
    with pytest.raises(SecaggError) as caught:
        make(folder)
    assert caught.value.reason == reason
    assert repr(held.partition("/")[0]) in caught.value.message
    assert str(folder) in caught.value.message
    assert "Nothing was changed" in (caught.value.remedy or "")
    assert listed(folder) == before


@pytest.mark.parametrize("make", [client, open_storage_key, Registry, service])
@pytest.mark.parametrize("content", [None, "", "lost+found"])
def test_a_new_folder_an_empty_one_and_a_new_volume_are_taken(
    tmp_path: Path, make: Makes, content: str | None
) -> None:
    folder = tmp_path / "folder"
    if content is not None:
        (folder / content).mkdir(parents=True)
    for _ in range(2):  # the second finds what the first left
        make(folder)
        assert len(list(folder.iterdir())) > (content == "lost+found")


def test_what_the_settings_name_may_lie_in_the_service_s_folder(tmp_path: Path) -> None:
    folder = tmp_path / "srv"
    for name in ("secret-keys", "objects"):
        (folder / name).mkdir(parents=True)
    (folder / "my.toml").write_text("keys_dir = 'x'\n")
    settings = Settings.load(
        folder / "my.toml",
        data_dir=folder,
        keys_dir=folder / "secret-keys",
        blob_dir=folder / "objects" / "blobs",
        database_url=f"sqlite:///{folder}/other.db",
    )
    Service(settings).core.pool.shutdown()
    assert (folder / "replica.id").exists()


def test_a_folder_whose_key_is_gone_is_told(tmp_path: Path) -> None:
    """A new key would open nothing of what lies there."""
    open_storage_key(tmp_path)
    (tmp_path / "account").write_bytes(b"sealed")
    (tmp_path / "storage.key").unlink()
    with pytest.raises(SecaggError, match="'account'"):
        open_storage_key(tmp_path)


def test_a_service_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/data"):
        with pytest.raises(SecaggError, match="--data-dir") as caught:
            service(tmp_path / place)
        assert caught.value.reason == "data-dir-unwritable"
        assert f"{tmp_path / 'file'} is a file" in caught.value.message
    for name in ("keys", "blobs"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).touch()
        with pytest.raises(SecaggError, match=f"{name} is a file") as caught:
            service(tmp_path / "data")
        assert caught.value.reason == "data-dir-unwritable"
        (tmp_path / "data" / name).unlink()


@pytest.mark.parametrize(
    ("made", "below"),
    [
        *itertools.product((client, open_storage_key, Registry, witness), ("", "/x", "/x/y")),
        *itertools.product((joining, recovery), ("",)),  # their other files lie beside the folder
    ],
)
def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path, made: Makes, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(SecaggError, match=f"{file} is a file") as caught:
        made(Path(f"{file}{below}"))
    assert caught.value.reason in ("state-unwritable", "witness-folder", "state-missing")
    assert caught.value.remedy
    assert file.read_text() == "mine"
