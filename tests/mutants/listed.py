"""The list of mutants, as the files beside this one have it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Mutant:
    """``what``: the defence that is missing in it, in words. ``tests``: pytest's node ids."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def mutants() -> list[Mutant]:
    found = []
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        for fields in tomllib.loads(path.read_text())["mutant"]:
            found.append(Mutant(**{**fields, "tests": tuple(fields["tests"])}))
    return found
