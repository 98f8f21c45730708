"""In a state folder's ``models`` only what a device downloaded is removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from client_sdk.errors import StateError
from client_sdk.state.durable_files import make_private_folder
from client_sdk.state.journal import Journal
from client_sdk.state.keystore import StorageKey
from client_sdk.state.models import demand_plain, forget_models, part_of, remove_model
from secagg.secret import Secret

KEY = StorageKey(Secret(bytes(32)))
NEW, OLD = "ab" * 32, "cd" * 32
THEIRS = [
    "llama.gguf",
    ".part",
    f"{OLD[:-1]}",
    f"{OLD}0",
    f"{OLD}.safetensors",
    f"{OLD}.part.part",
    OLD.upper(),
    f"{'ef' * 32}/weights",
    "sub/0",
]


def models_of(state: Path) -> Path:
    return Journal(state, KEY).models


def test_only_models_and_their_parts_are_removed(tmp_path: Path) -> None:
    folder = models_of(tmp_path / "state")
    for name in (*THEIRS, NEW, f"{NEW}.part", OLD, f"{OLD}.part"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("x")
    (folder / ("01" * 32)).symlink_to(elsewhere)
    forget_models(folder, keep=folder / NEW)
    assert (folder / NEW).exists()
    assert part_of(folder / NEW).exists()
    assert not (folder / OLD).exists()
    assert not part_of(folder / OLD).exists()
    forget_models(folder)
    assert not (folder / NEW).exists()
    assert not part_of(folder / NEW).exists()
    assert all((folder / name).exists() for name in THEIRS)
    assert (folder / ("01" * 32)).is_symlink()
    assert elsewhere.exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_models_that_are_no_folder_of_its_own_are_refused(tmp_path: Path, kind: str) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir()
    elsewhere.mkdir()
    (elsewhere / OLD).write_text("x")
    if kind == "file":
        (state / "models").write_text("x")
    else:
        (state / "models").symlink_to(elsewhere if kind == "link" else tmp_path / "nowhere")
    for refused in (lambda: Journal(state, KEY), lambda: forget_models(state / "models")):
        with pytest.raises(StateError) as caught:
            refused()
        assert caught.value.reason == "state-folder-taken"
        assert str(state / "models") in caught.value.message
        assert "Nothing was changed" in (caught.value.remedy or "")
    assert (elsewhere / OLD).exists()
    assert not (tmp_path / "nowhere").exists()
    assert os.listdir(state) == ["models"]


@pytest.mark.parametrize("name", [NEW, f"{NEW}.part"])
def test_a_model_is_not_written_through_a_link_or_over_a_folder(tmp_path: Path, name: str) -> None:
    folder = models_of(tmp_path / "state")
    demand_plain(folder / name)
    thesis = tmp_path / "thesis"
    thesis.write_text("mine")
    (folder / name).symlink_to(thesis)
    with pytest.raises(StateError, match="state-folder-taken"):
        demand_plain(folder / "x", folder / name)
    remove_model(folder / name)
    assert (folder / name).is_symlink()
    assert thesis.read_text() == "mine"
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(StateError, match="state-folder-taken"):
        demand_plain(folder / name)
    remove_model(folder / name)
    assert (folder / name).is_dir()


def test_old_records_are_told_from_files_of_that_beginning(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KEY)
    (tmp_path / "control-of-my-drone.txt").write_text("mine")
    for number in range(4):
        journal.save_blob(f"control-{number:032x}", b"x")
        os.utime(tmp_path / f"control-{number:032x}", (number, number))
    journal.keep_newest("control-", 2)
    left = sorted(path.name for path in tmp_path.glob("control-*"))
    assert left == [f"control-{2:032x}", f"control-{3:032x}", "control-of-my-drone.txt"]


def test_a_state_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state", KEY)
    (tmp_path / "thesis").write_text("mine")
    (tmp_path / "state" / "account.new").symlink_to(tmp_path / "thesis")
    with pytest.raises(StateError, match="state-unwritable"):
        journal.save_blob("account", b"x")
    assert (tmp_path / "thesis").read_text() == "mine"


def test_a_new_folder_is_private_and_one_that_is_there_keeps_its_permissions(
    tmp_path: Path,
) -> None:
    make_private_folder(tmp_path / "new" / "state")
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o755)
    make_private_folder(tmp_path / "there")
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o755
