"""The files of the core, the privacy floor and the SDK: none draws from a seeded generator."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

GENERATORS = {"random", "numpy.random", "np.random", "torch"}
STATES = {"getstate", "get_state"}  # looking is not drawing
DRAWS = {"manual_seed", "rand", "randn", "randint", "randperm", "normal", "bernoulli"}  # of torch


def draws_in(path: Path) -> list[str]:
    """Uses of a generator that somebody may have seeded, or that is not made for secrets."""
    tree = ast.parse(path.read_text())
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (
            node.module in ("random", "numpy.random")
            or (node.module == "numpy" and any(alias.name == "random" for alias in node.names))
        ):
            found.append(str(node.module))
        elif isinstance(node, ast.Attribute):
            module, _, name = ast.unparse(node).rpartition(".")
            if module in GENERATORS and module.partition(".")[0] in imported:
                drawn = name in DRAWS if module == "torch" else name not in STATES
                found += [f"{module}.{name}"] if drawn else []
    return found


def test_no_file_of_the_core_or_the_sdk_draws_from_a_generator_that_can_be_seeded() -> None:
    floors = ("secagg", "dp", "client_sdk")
    files = [path for floor in floors for path in (ROOT / floor).rglob("*.py")]
    assert len(files) > 90
    assert {path.name: draws_in(path) for path in files if draws_in(path)} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from random import random",
        "from numpy.random import normal",
        "from numpy import random",
        "import random; random.choice(rows)",
        "import numpy as np; np.random.bytes(32)",
        "import numpy.random; numpy.random.normal()",
        "import torch; torch.manual_seed(0)",
    ],
)
def test_a_line_that_draws_from_one_is_found(line: str, tmp_path: Path) -> None:
    file = tmp_path / "drawing.py"
    file.write_text(line)
    assert draws_in(file)
