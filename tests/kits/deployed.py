"""The files of ``deploy/`` as their own programs would read them, without an engine."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SECAGG = [sys.executable, "-m", "secagg_cli.main"]


def env_file(path: Path) -> dict[str, str]:
    """NAME=VALUE lines, as systemd and compose read them."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def filled_in() -> dict[str, str]:
    """The example of compose's environment, with something for all that it leaves open."""
    example = env_file(DEPLOY / "compose.env.example")
    return {name: value or f"value-of-{name.lower()}" for name, value in example.items()}


def compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """Compose's file with its variables put in; a missing one is an error, as ``:?`` says."""

    def put_in(match: re.Match[str]) -> str:
        name, demanded, default = match.groups()
        value = environment.get(name) or default
        assert value or not demanded, name
        return value or ""

    text = (DEPLOY / "compose.yaml").read_text()
    found: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)(?:(:\?)|:-([^}]*))?\}", put_in, text))
    assert "$" not in str(found), "a variable in a form that this kit does not know"
    return found


def image() -> dict[str, Any]:
    """What the Dockerfile's last stage says: ``env``, ``ENTRYPOINT``, ``CMD``, ``USER``."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    last = text[text.rindex("\nFROM ") :]
    lines = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in last.splitlines() if line}
    env = dict(word.split("=", 1) for word in shlex.split(lines["ENV"]))
    return {"env": env, **{name: lines[name] for name in ("ENTRYPOINT", "CMD", "USER")}}


def unit() -> dict[str, list[str]]:
    """The keys of systemd's unit, each with its values."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "systemd" / "secagg.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            found.setdefault(name, []).append(value)
    return found
