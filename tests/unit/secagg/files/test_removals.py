"""Every place of the packages that removes, renames or writes over a file, and why it may.

A new place fails here until it is listed with its reason: what it touches, the program wrote.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
PACKAGES = ("secagg", "dp", "client_sdk", "aggregator", "secagg_cli")
ALWAYS = {"unlink", "rmtree", "rmdir", "removedirs", "renames", "write_text", "write_bytes"}
OF_MODULES = {"remove", "replace", "rename", "move", "truncate", "copy", "copyfile", "copytree"}
MODULES = {"os", "shutil"}

STATE = "one of our names in a state folder, which is ours before anything is written"
STAGED = "what this call made itself, under a random name"
DEMO = "in the demo's folder, which was new or empty"
ADMITTED = {
    "secagg/files/folders.py remove_files unlink": "plain files of the names that are given",
    "secagg/files/folders.py remove_files rmdir": "a folder that is empty, named as ours",
    "client_sdk/accounts/registry.py _set_aside replace": STATE,
    "client_sdk/forgetting.py _remove rmdir": "our folder of models, if it is empty",
    "client_sdk/forgetting.py sweep rmdir": "our folders, if they are empty",
    "client_sdk/forgetting.py sweep unlink": "the lock of a folder in which nothing else is left",
    "client_sdk/testing/books.py _stored write_bytes": "in the test aggregator's own folder",
    "client_sdk/network/transport.py download_model unlink": "a plain file: its caller saw to it",
    "client_sdk/network/part_files.py _write open": "a plain file: its caller saw to it",
    "client_sdk/outputs.py write_file open": "a device or a pipe, which is not a file",
    "client_sdk/outputs.py write_folder rename": STAGED,
    "client_sdk/outputs.py _folders rmdir": "a folder that this call made, and that is empty",
    "client_sdk/outputs.py _staged rmtree": STAGED,
    "client_sdk/outputs.py _staged unlink": STAGED,
    "client_sdk/outputs.py _put replace": "a result that an earlier call wrote, by its content",
    "client_sdk/outputs.py _put rename": "to a place where nothing stands",
    "client_sdk/rounds/checkin.py _download replace": "over what is not there or a plain file",
    "client_sdk/state/durable_files.py  O_TRUNC": STATE,
    "client_sdk/state/durable_files.py write_durably replace": STATE,
    "client_sdk/state/durable_files.py remove_durably unlink": STATE,
    "client_sdk/state/models.py remove_model unlink": "a plain file with a model's name",
    "aggregator/keys.py private_text unlink": STAGED,
    "aggregator/ledger/log.py _replace write_bytes": STAGED,
    "aggregator/ledger/log.py _replace replace": "a ledger's file: the folder bears our signature",
    "aggregator/store/blobs.py put replace": "a digest, or a partial sum of this run's own shard",
    "aggregator/store/blobs.py put unlink": STAGED,
    "aggregator/store/blobs.py keep replace": "a part of a vector, named by where its bytes lie",
    "aggregator/store/blobs.py close unlink": STAGED,
    "aggregator/store/blobs.py delete unlink": "a partial sum of this run's own shard",
    "secagg_cli/demo/run.py run_demo open": DEMO,
    "secagg_cli/demo/run.py _enrol rename": DEMO,
    "secagg_cli/demo/run.py _audit copytree": DEMO,
    "secagg_cli/demo/run.py _audit write_text": DEMO,
    "secagg_cli/demo/run.py write_jsonl open": DEMO,
    "secagg_cli/models/cache.py _once rename": STAGED,
    "secagg_cli/models/cache.py _once rmtree": STAGED,
    "secagg_cli/models/cache.py _make_smollm2 open": "in a temporary folder",
    "secagg_cli/models/cache.py _make_smollm2 unlink": "in a temporary folder",
    "secagg_cli/operator/enroll.py enrol unlink": "bundles that this call wrote",
    "secagg_cli/output.py open_streams open": "the null device",
}


def places(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """(innermost function, verb) of all that removes, renames or writes over a file."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if verb := _verb(node):
            yield inner, verb
        yield from places(node, inner)


def _verb(node: ast.AST) -> str | None:
    if isinstance(node, ast.ImportFrom) and node.module in MODULES:
        return next((n.name for n in node.names if n.name in OF_MODULES | ALWAYS), None)
    if isinstance(node, ast.Attribute):
        removes = node.attr in ALWAYS or node.attr == "O_TRUNC"
        return node.attr if removes or (_of_module(node) and node.attr in OF_MODULES) else None
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name):
        return "open" if node.func.id == "open" and _writes(node, 1) else None
    if not isinstance(node.func, ast.Attribute) or _of_module(node.func):
        return None
    if node.func.attr in ("replace", "rename"):  # one argument alone: a path's, not a text's
        return node.func.attr if len(node.args) == 1 and not node.keywords else None
    return "open" if node.func.attr == "open" and _writes(node, 0) else None


def _of_module(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in MODULES


def _writes(call: ast.Call, place: int) -> bool:
    """Whether the mode empties the file, or may."""
    modes = [*call.args[place : place + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    if place == 1 and any(isinstance(mode, ast.Name) for mode in modes):
        return True
    texts = (
        node.value for mode in modes for node in ast.walk(mode) if isinstance(node, ast.Constant)
    )
    return any(isinstance(text, str) and re.fullmatch("[bt+]*w[bt+]*", text) for text in texts)


def test_what_removes_files_is_listed_with_its_reason() -> None:
    found = {
        f"{file.relative_to(ROOT).as_posix()} {function} {verb}"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for function, verb in places(ast.parse(file.read_text("utf-8")))
    }
    assert found == ADMITTED.keys()


@pytest.mark.parametrize(
    ("source", "verb"),
    [
        ("def f(p): p.unlink()", "unlink"),
        ("def f(p): to_thread(shutil.rmtree, p)", "rmtree"),
        ("def f(p): os.remove(p)", "remove"),
        ("def f(p): os.replace(p, q)", "replace"),
        ("def f(p): p.replace(q)", "replace"),
        ("def f(p): p.rename(q)", "rename"),
        ("def f(p): p.write_text('x')", "write_text"),
        ("def f(p): open(p, 'w')", "open"),
        ("def f(p): open(p, mode='wb')", "open"),
        ("def f(p): p.open('w')", "open"),
        ("def f(p):\n from shutil import move", "move"),
        ("def f(p): os.open(p, os.O_WRONLY | os.O_TRUNC)", "O_TRUNC"),
    ],
)
def test_such_a_place_is_seen(source: str, verb: str) -> None:
    assert list(places(ast.parse(source))) == [("f", verb)]


@pytest.mark.parametrize(
    "source",
    [
        "x.replace('a', 'b')",
        "msgspec.structs.replace(x, a=1)",
        "items.remove(x)",
        "open(p)",
        "p.open('ab')",
        "key.open(name, sealed)",
        "now.replace(tzinfo=None)",
    ],
)
def test_other_things_are_not_taken_for_it(source: str) -> None:
    assert not list(places(ast.parse(source)))
