"""The README's code blocks, its policy and its task file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from client_sdk.policy import PrivacyPolicy
from dp.contracts import TaskSpec, parse_spec

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def readme_spec() -> TaskSpec:
    (text,) = blocks("toml")
    return parse_spec(text)


def readme_policy() -> PrivacyPolicy:
    """The policy of the three lines for a partner's app."""
    calls = [
        node
        for block in blocks("python")
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "PrivacyPolicy"
    ]
    (call,) = calls
    return PrivacyPolicy(**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
