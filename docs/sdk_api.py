"""docs/sdk-api.md from the docstrings: ``python -m docs.sdk_api > docs/sdk-api.md``."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import client_sdk
from client_sdk import testing

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# The SDK's public names

Made by `python -m docs.sdk_api` from the docstrings, of which it shows the beginning;
`help(client_sdk.Client.run)` shows the rest: units, defaults and every error. What has no line here
may change with any version. What has one changes with a new minor version at most while secagg is
at 0, and [the changelog](../CHANGELOG.md) says how. State folders of earlier versions are read on.
"""
Declared = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign


def page() -> str:
    parts = [HEAD, "\n## `client_sdk`\n"]
    parts += [_entry(name, f"client_sdk/{_home(name)}.py") for name in client_sdk.__all__]
    parts.append("\n## Kinds of events\n\n`Event.kind`; `Event.detail` has what is named here.\n")
    parts += [f"- `{kind}` {said}" for kind, said in _event_kinds()]
    parts.append("\n## `client_sdk.testing`, for an app's own tests\n")
    parts += [_entry(name, "client_sdk/testing/__init__.py") for name in testing.__all__]
    return "\n".join(parts)


def _event_kinds() -> list[tuple[str, str]]:
    """Each kind with the comment beside it."""
    text = (ROOT / "client_sdk/events.py").read_text("utf-8")
    listed = text.partition("EventKind = Literal[")[2].partition("\n]\n")[0]
    found = re.findall(r'"([a-z-]+)",  # ((?:.*)(?:\n    # .*)*)', listed)
    return [(kind, said.replace("\n    # ", " ")) for kind, said in found]


def _home(name: str) -> str:
    return client_sdk._HOMES.get(name, "errors").replace(".", "/")


def _entry(name: str, file: str) -> str:
    node = _declared(name, file)
    if isinstance(node, ast.Assign):
        return f"- **`{name}`** {ast.unparse(node.value)}"
    lines = [f"- **`{name}`** {_first(node)}"]
    if isinstance(node, ast.ClassDef):
        lines += _fields(node)
        lines += [
            f"    - `{_called(each)}` {_first(each)}"
            for each in node.body
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            and not each.name.startswith("_")
        ]
    return "\n".join(lines)


def _fields(node: ast.ClassDef) -> list[str]:
    """Attributes that the class declares, and what a call of it takes beyond them."""
    declared = [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign)
        and isinstance(each.target, ast.Name)
        and not each.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(each.annotation)
    ]
    lines = [f"    - fields: {', '.join(f'`{name}`' for name in declared)}"] if declared else []
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            lines.append(f"    - `{node.name}{_called(each).removeprefix('__init__')}`")
    return lines


def _declared(name: str, file: str) -> Declared:
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}:
            return _declared(name, f"{str(node.module).replace('.', '/')}.py")
    raise LookupError(f"{file} does not declare {name}")


def _called(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = {ast.unparse(each) for each in node.decorator_list}
    if names & {"property", "cached_property"}:
        return node.name
    given = [each.arg for each in node.args.args if each.arg not in ("self", "cls")]
    given += [f"{each.arg}=" for each in node.args.kwonlyargs]
    wait = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    if node.returns is not None and ast.unparse(node.returns).startswith("AsyncGenerator"):
        wait = "async for event in "
    return f"{wait}{node.name}({', '.join(given)})"


def _first(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The first paragraph of a docstring, on one line, without the marks of its references."""
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    text = " ".join(text.replace("``", "`").split())
    for mark in (":class:", ":meth:", ":func:", ":mod:", ":attr:"):
        text = text.replace(mark, "")
    return text.replace("`~", "`")


if __name__ == "__main__":
    print(page())
