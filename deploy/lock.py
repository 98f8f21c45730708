"""Writes ``deploy/requirements.txt`` (what the image installs, by version and hash) and
``deploy/sbom.cdx.json`` (the same as a CycloneDX bill of materials).

python -m deploy.lock

Versions are those of ``constraints.txt``. It needs the extra ``lock`` and the package index that
pip is set up with.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "deploy" / "requirements.txt"
SBOM = ROOT / "deploy" / "sbom.cdx.json"
EXTRAS = ("server", "postgres", "objects")


def lock() -> None:
    """The lock file, for Linux, whatever the processor."""
    source = "pyproject.toml"
    command = [sys.executable, "-m", "uv", "pip", "compile", source, "-", "--quiet"]
    command += [f"--extra={extra}" for extra in EXTRAS]
    command += ["--constraint=constraints.txt", "--generate-hashes"]
    command += ["--python-platform=linux", "--python-version=3.11", "--no-cache"]
    command += ["--no-annotate", "--no-header", "--no-emit-index-url"]
    command += ["--output-file", str(LOCK.relative_to(ROOT))]
    LOCK.unlink(missing_ok=True)  # or its versions would be preferred
    _run(command, given="setuptools\n")  # which builds the wheel in the image


def bill() -> None:
    """The bill of materials of what the lock file installs, with the same bytes for the same."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/venv/bin/python"
        _run([sys.executable, "-m", "venv", "--without-pip", f"{folder}/venv"])
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-cache"]
        _run([*install, "--python", python, "--require-hashes", "--requirements", str(LOCK)])
        command = [sys.executable, "-m", "cyclonedx_py", "environment", python]
        command += ["--pyproject", "pyproject.toml", "--output-reproducible"]
        command += ["--spec-version", "1.6", "--output-format", "JSON", "--output-file", str(SBOM)]
        _run(command)


def _run(command: list[str], given: str | None = None) -> None:
    index = _of_pip("global.index-url")
    environment = os.environ | ({"UV_DEFAULT_INDEX": index} if index else {})
    subprocess.run(command, cwd=ROOT, check=True, text=True, input=given, env=environment)


def _of_pip(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", name], capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    lock()
    bill()
