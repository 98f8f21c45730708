"""Take one defence out at a time and see that a test notices: ``python -m tests.mutants``.

Each ``[[mutant]]`` of the ``*.toml`` files beside this one names a file, a text that occurs in it
once, what to put in its place, and the tests that must then fail. A mutant runs in a copy of the
tree; first all named tests run on an unchanged copy, where they must pass.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.listed import ROOT, Mutant, mutants

_COPIED = ("secagg", "dp", "client_sdk", "aggregator", "secagg_cli")
_COPIED += ("benchmarks", "deploy", "docs", "tests")
_FILES = ("pyproject.toml", "README.md", "threat_model.md", "constraints.txt")
_LIMIT_S = 300.0
_BASELINE_LIMIT_S = 3_600.0
_PASSED, _FAILED = 0, 1  # pytest's exit codes


def _copy(folder: Path) -> Path:
    tree = folder / "tree"
    for name in _COPIED:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copy(ROOT / name, tree / name)
    return tree


def _run(tree: Path, tests: list[str], limit_s: float = _LIMIT_S) -> tuple[int | None, str]:
    """pytest's exit code, None if it took too long, and what it printed last."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout[-2_000:]


def _verdict(mutant: Mutant) -> str:
    with tempfile.TemporaryDirectory() as folder:
        tree = _copy(Path(folder))
        file = tree / mutant.file
        file.write_text(file.read_text().replace(mutant.old, mutant.new))
        code, _ = _run(tree, list(mutant.tests))
    if code is None:
        return "killed (no end)"
    return {_PASSED: "SURVIVED", _FAILED: "killed"}.get(code, f"BROKEN (pytest ended with {code})")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names of mutants, as in a shell")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once")
    options = parser.parse_args()
    chosen = [m for m in mutants() if fnmatch.fnmatch(m.name, options.pattern)]
    if not chosen:  # pytest without a test's name would run them all
        parser.error(f"no mutant has a name like {options.pattern!r}")
    with tempfile.TemporaryDirectory() as folder:
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        code, printed = _run(_copy(Path(folder)), tests, _BASELINE_LIMIT_S)
        if code != _PASSED:
            print(f"{printed}The unchanged code does not pass the tests that the mutants name.")
            return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(_verdict, chosen)
        killed = 0
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            killed += verdict.startswith("killed")
            print(f"{verdict:16} {mutant.name}: {mutant.what}", flush=True)
    print(f"{killed} of {len(chosen)} mutants killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
