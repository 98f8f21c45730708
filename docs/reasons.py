"""Writes ``docs/reasons.md`` from the refusals in the code of service and command line.

python -m docs.reasons > docs/reasons.md
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PLACES = {
    "The service: its start, settings and stores": ("aggregator", {"ConfigurationError": 0}),
    "The service: what it answers": ("aggregator", {"Refusal": 1, "conflict": 0}),
    "Commands": (
        "secagg_cli",
        {"CommandError": 0, "UnusableArgument": 0, "NotReached": 0, "ConfigurationError": 0},
    ),
}
_PAGE = """# What to do on each reason

This page is written by `python -m docs.reasons` from the refusals in the code; a test compares it.
Every error says its reason, what was expected and found, and the way out; programs compare the
reason. `...` stands for what the error names. Reasons of `/readyz` and of the log:
[operations.md](operations.md#health-and-the-end); of the network: [networks.md](networks.md).
"""


def _text(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else "..." for v in node.values)
    return ""


def found(folder: str, calls: dict[str, int]) -> dict[str, set[tuple[str, str]]]:
    """Reason -> what is said and what helps, of every place that raises it by name."""
    reasons: dict[str, set[tuple[str, str]]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            name = getattr(getattr(node, "func", None), "id", None)
            if not isinstance(node, ast.Call) or name not in calls:
                continue
            place = calls[name]
            reason = _text(node.args[place]) if len(node.args) > place else ""
            said = _text(node.args[place + 1]) if len(node.args) > place + 1 else ""
            remedy = next((_text(each.value) for each in node.keywords if each.arg == "remedy"), "")
            if reason and "..." not in reason:
                reasons.setdefault(reason, set()).add((said, remedy))
    return reasons


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    parts = [_PAGE]
    for title, (folder, calls) in _PLACES.items():
        parts.append(f"\n## {title}\n\n| reason | what it says | what helps |\n|---|---|---|\n")
        for reason, told in sorted(found(folder, calls).items()):
            for said, remedy in sorted(told):
                parts.append(f"| `{reason}` | {_cell(said)} | {_cell(remedy)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
