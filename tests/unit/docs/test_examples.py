"""The examples use the public names alone, and their task files are ones that their apps admit."""

from __future__ import annotations

import ast
from pathlib import Path

import msgspec
import pytest

import client_sdk
from client_sdk import testing
from client_sdk.policy import PrivacyPolicy
from dp.contracts import parse_spec
from tests.kits.device import PARTNER, account_in, fedsgd_spec, make_manifest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
APPS = sorted(path.parent for path in EXAMPLES.glob("*/app.py"))
PUBLIC = {
    "client_sdk": {*client_sdk.__all__, "__version__", "testing"},
    "client_sdk.testing": set(testing.__all__),
}
WHOLE = {("client_sdk", "testing"), ("client_sdk", "")}
OURS = {"secagg", "dp", "client_sdk", "aggregator", "secagg_cli", "tests", "benchmarks"}
VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"


def imports(tree: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of everything that is imported; name "" for a whole module."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found += [(str(node.module), alias.name) for alias in node.names]
    return found


def not_public(source: str) -> list[str]:
    """What a source takes of this project beside its public names, and private names of others."""
    tree, found = ast.parse(source), []
    for module, name in imports(tree):
        if module.partition(".")[0] not in OURS or (module, name) in WHOLE:
            continue
        if name not in PUBLIC.get(module, ()):
            found.append(f"{module}.{name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            if owner != "self" and node.attr.startswith("_"):
                found.append(f"{owner}.{node.attr}")
            public = PUBLIC.get({"testing": "client_sdk.testing"}.get(owner, owner))
            if public is not None and node.attr not in public:
                found.append(f"{owner}.{node.attr}")
    return found


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*/*.py")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_an_example_uses_public_names_alone(path: Path) -> None:
    assert not_public(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from client_sdk.client import Client",
        "from client_sdk import ServerTime",
        "import secagg",
        "import client_sdk.rounds",
        "from dp.contracts import TaskSpec",
        "client._folder",
        "testing.books",
        "client_sdk.policy",
    ],
)
def test_what_is_not_public_is_found(source: str) -> None:
    assert not_public(source)


@pytest.mark.parametrize("folder", APPS, ids=lambda folder: folder.name)
def test_an_example_has_its_task_and_its_tests(folder: Path) -> None:
    assert {"task.toml", "test_app.py"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("folder", APPS, ids=lambda folder: folder.name)
def test_the_apps_policy_admits_its_own_task(folder: Path, tmp_path: Path) -> None:
    spec = parse_spec((folder / "task.toml").read_bytes())
    if spec.algorithm != "sum":
        small = fedsgd_spec()  # what task create --model adds
        spec = msgspec.structs.replace(spec, base_model=small.base_model, adapter=small.adapter)
    policy_of(folder).admit(
        make_manifest(spec, VERIFIER), own_partner=PARTNER.key, account=account_in(tmp_path)
    )


def policy_of(folder: Path) -> PrivacyPolicy:
    """The one that ``app.py`` gives to its client, without what only the app can say."""
    [call] = [
        node
        for node in ast.walk(ast.parse((folder / "app.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "PrivacyPolicy"
    ]
    given = {str(k.arg): k.value for k in call.keywords if k.arg != "may_train"}
    return PrivacyPolicy(**{name: ast.literal_eval(value) for name, value in given.items()})
