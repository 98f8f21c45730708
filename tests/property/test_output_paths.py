"""Whatever stands at or around a place that a user names for a result is there afterwards.

Random trees, random places and every writer of results; a tree before and after is compared byte by
byte. What a writer makes is beside it; where it refuses there is nothing new at all.
"""

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.quality_chart import is_chart
from client_sdk import outputs
from client_sdk.enrolment import (
    create_bundle,
    load_bundle,
    new_partner_key,
    save_bundle,
    save_partner_key,
)
from client_sdk.errors import EnrolmentError, OutputError
from client_sdk.training.lora import vector_length, write_peft_folder
from dp.tlog.notes import verifier_key
from secagg.evidence import decode_evidence
from secagg.http_api import ServerInfo
from secagg_cli.audit.report import is_report
from secagg_cli.demo.folder import claim_folder
from secagg_cli.operator import enroll
from secagg_cli.operator.export import is_model_file
from tests.kits.tiny_training import tiny_task

PARTNER = new_partner_key()
VERIFIER = verifier_key("test", PARTNER.key)
BUNDLE = create_bundle("http://localhost", PARTNER.key, VERIFIER, PARTNER.seed, 4_000_000_000)
MANIFEST = tiny_task("none")
VECTOR = np.zeros(vector_length(MANIFEST.adapter), np.float32)


def adapter(path: Path) -> None:
    write_peft_folder(path, MANIFEST, VECTOR)


INFO = ServerInfo(task_key=PARTNER.key, ledger_verifier=VERIFIER)
KEYS = tempfile.TemporaryDirectory()
KEY_FILE = Path(KEYS.name) / "partner.key"
save_partner_key(KEY_FILE, PARTNER.seed)


def bundles(folder: Path) -> None:
    with mock.patch.object(enroll, "server_info", return_value=INFO):
        enroll.enrol("http://localhost", KEY_FILE, folder, 2)


def is_evidence(path: Path) -> bool:
    return bool(decode_evidence(path.read_bytes()))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "file": lambda path: outputs.write_file(path, b"new"),
    "private file": lambda path: outputs.write_file(path, b"new", private=True),
    "report": lambda path: outputs.write_file(path, b"new", is_report),
    "vector": lambda path: outputs.write_file(path, b"new", is_model_file),
    "evidence": lambda path: outputs.write_file(path, b"new", is_evidence),
    "chart": lambda path: outputs.write_file(path, b"new", is_chart),
    "adapter": adapter,
    "bundles": bundles,
    "folder": lambda path: claim_folder(path),
    "folder by default": lambda _: claim_folder(None),
    "bundle": lambda path: save_bundle(path, BUNDLE),
    "partner key": lambda path: save_partner_key(path, PARTNER.seed),
    "partner key, made if missing": enroll.partner_key,
}
NAMES = (
    "thesis.txt",
    "adapter_config.json",
    "adapter_model.safetensors",
    "device-01.json",
    "device-01.json.new",
    "secagg-demo",
    "thesis.txt.new",
    ".hidden",
    "sub",
    "a b",
)
TARGETS = (
    *NAMES,
    ".",
    "..",
    "~",
    "~/sub",
    "~nobody-of-this-name/x",
    "ABSOLUTE",
    "sub/adapter_config.json",
    "sub/new/deep",
    "sub/..",
    "./sub/",
    "thesis.txt/below",
    "link",
    "link/new",
    "dangling",
    "loop",
    "new",
    "n" * 250,
    "n" * 300,
    "zero\0byte",
)
Entry = tuple[str, Any]
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.sampled_from((b"", b"x", b"{}", b"[]", b"<svg", b"\x01\x80"))),
    st.tuples(st.just("link"), st.sampled_from((".", "..", "thesis.txt", "nowhere", "sub"))),
)
TREES = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        LEAVES,
        st.tuples(st.just("folder"), st.dictionaries(st.sampled_from(NAMES), LEAVES, max_size=3)),
    ),
    max_size=5,
)


def plant(folder: Path, tree: dict[str, Entry]) -> None:
    folder.mkdir(exist_ok=True)
    for name, (kind, what) in tree.items():
        if kind == "file":
            (folder / name).write_bytes(what)
        elif kind == "link":
            (folder / name).symlink_to(what)
        else:
            plant(folder / name, what)


def seen(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        what: bytes | str | None = None
        if stat.S_ISLNK(mode):
            what = os.readlink(path)
        elif stat.S_ISREG(mode):
            what = path.read_bytes()
        found[str(path.relative_to(root))] = (mode, what)
    return found


@contextlib.contextmanager
def home_and_work(tree: dict[str, Entry]) -> Iterator[tuple[Path, Path]]:
    """A scratch root with a home folder and a current folder, each with the tree in it."""
    before, home = Path.cwd(), os.environ.get("HOME")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch).resolve()
        work = root / "home" / "work"
        plant(root / "home", tree)
        plant(work, tree)
        for folder in (root / "home", work):
            (folder / "link").symlink_to("sub")
            (folder / "dangling").symlink_to("not-there/yet")
            (folder / "loop").symlink_to("loop")
        os.chdir(work)
        os.environ["HOME"] = str(root / "home")
        try:
            yield root, work
        finally:
            os.chdir(before)
            if home is None:
                del os.environ["HOME"]
            else:
                os.environ["HOME"] = home


@settings(max_examples=300, deadline=None)
@given(tree=TREES, target=st.sampled_from(TARGETS), writer=st.sampled_from(sorted(WRITERS)))
def test_nothing_that_was_there_is_changed_or_gone(
    tree: dict[str, Entry], target: str, writer: str
) -> None:
    with home_and_work(tree) as (root, work):
        before = seen(root)
        path = work / "abs" / "x" if target == "ABSOLUTE" else Path(target)
        refused = False
        try:
            WRITERS[writer](path)
        except (OutputError, EnrolmentError):  # the latter: what is there is not a partner's key
            refused = True
        after = seen(root)
    assert {name: after.get(name) for name in before} == before
    made = after.keys() - before.keys()
    assert not (refused and made)
    assert not [name for name in made if ".secagg-" in name]


def test_a_bundle_may_be_saved_again_and_no_other_one_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    save_bundle(path, BUNDLE)
    save_bundle(path, BUNDLE)
    other = msgspec.structs.replace(BUNDLE, identity_seed=bytes(32))
    with pytest.raises(OutputError) as caught:
        save_bundle(path, other)
    assert caught.value.reason == "out-taken"
    assert load_bundle(path).identity_seed == BUNDLE.identity_seed
