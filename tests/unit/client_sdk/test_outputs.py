"""Files and folders that a user names: what may be replaced, and how a refusal reads."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from client_sdk import outputs
from client_sdk.enrolment import load_partner_key
from client_sdk.errors import OutputError
from client_sdk.training.lora import vector_length, write_peft_folder
from secagg_cli.operator import enroll
from tests.kits.tiny_training import tiny_task

MANIFEST = tiny_task("none")


def adapter(folder: Path, value: float = 0.0) -> None:
    length = vector_length(MANIFEST.adapter)
    write_peft_folder(folder, MANIFEST, np.full(length, value, np.float32))


def test_an_adapter_that_was_written_here_is_replaced_also_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (1.0, 2.0):
        adapter(Path("."), value)
    assert sorted(os.listdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    first = load_file("adapter_model.safetensors")
    adapter(Path("."), 1.0)
    assert any((first[k] != v).any() for k, v in load_file("adapter_model.safetensors").items())


def _of_another_tool(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})


def _edited(folder: Path) -> None:
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))


def _linked(folder: Path) -> None:
    config = folder / "adapter_config.json"
    config.rename(folder.parent / "elsewhere.json")
    config.symlink_to("../elsewhere.json")


def _with_a_readme(folder: Path) -> None:
    (folder / "README.md").write_text("mine")


def _half(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize("change", [_of_another_tool, _edited, _linked, _with_a_readme, _half])
def test_an_adapter_of_somebody_else_is_kept(tmp_path: Path, change) -> None:
    folder = tmp_path / "adapter"
    adapter(folder, 1.0)
    change(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputError, match="out-not-empty"):
        adapter(folder, 2.0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_link_stays_and_what_it_points_at_counts(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"mine 1")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OutputError, match="out-taken"):
        outputs.write_file(tmp_path / "link", b"new")
    outputs.write_file(tmp_path / "link", b"mine 2", lambda path: path.read_bytes()[:4] == b"mine")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"mine 2"


@pytest.mark.parametrize("below", ["", "new", "new/deep"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    for check in (outputs.check_file, outputs.check_folder):
        with pytest.raises(OutputError, match="link to nowhere, which is not there"):
            check(tmp_path / "link" / below)
    assert os.listdir(tmp_path) == ["link"]


def test_an_empty_path_is_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (outputs.check_file, outputs.check_folder):
        with pytest.raises(OutputError, match="the path is empty"):
            check("")


def test_what_is_no_file_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    """A pipe of our own stands for every device: a broken build run by root would replace those."""
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        outputs.write_file(tmp_path / "pipe", b"through")
        read.append(os.read(reader, 100))
    finally:
        os.close(reader)
    assert read == [b"through"]
    assert (tmp_path / "pipe").is_fifo()


def test_a_full_disk_leaves_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter(tmp_path / "adapter", 1.0)
    (tmp_path / "file").write_bytes(b"mine")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: adapter(tmp_path / "adapter", 2.0),
        lambda: adapter(tmp_path / "new" / "adapter"),
        lambda: outputs.write_file(tmp_path / "file", b"x", lambda _: True),
        lambda: outputs.write_file(tmp_path / "other" / "file", b"x"),
        lambda: enroll.partner_key(tmp_path / "keys" / "partner.key"),
    ):
        with pytest.raises(OutputError, match="No space left"):
            write()
    assert sorted(os.listdir(tmp_path)) == ["adapter", "file"]
    assert sorted(os.listdir(tmp_path / "adapter")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_where_this_user_may_not_write_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    for check in (outputs.check_file, outputs.check_folder):
        with pytest.raises(OutputError, match="out-unwritable"):
            check(tmp_path / "new")
        with pytest.raises(OutputError, match="out-unwritable"):
            check(tmp_path / "not" / "yet" / "there")


def test_what_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = outputs._write

    def slow(path: Path, data: bytes, mode: int) -> None:
        write(path, data, mode)
        (tmp_path / "file").write_bytes(b"faster")

    monkeypatch.setattr(outputs, "_write", slow)
    with pytest.raises(OutputError, match="out-taken"):
        outputs.write_file(tmp_path / "file", b"x")
    (tmp_path / "file").unlink()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    with pytest.raises(OutputError, match="out-taken"):
        outputs.write_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"faster"


def test_a_file_system_without_links_holds_results_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no")))
    outputs.write_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["file"]


def test_modes_are_those_of_the_umask_or_private(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        outputs.write_file(tmp_path / "public", b"x")
        outputs.write_file(tmp_path / "secret", b"x", private=True)
        adapter(tmp_path / "adapter")
    finally:
        os.umask(before)
    assert (tmp_path / "public").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "adapter").stat().st_mode & 0o777 == 0o750


def test_the_home_folder_is_meant_by_its_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    public = enroll.partner_key(Path("~/partner.key"))
    assert load_partner_key(tmp_path / "home" / "partner.key").key == public
    assert enroll.partner_key(Path("~/partner.key")) == public
    assert os.listdir(tmp_path) == ["home"]
