"""What made an output: the version and a digest of this installation's own code."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import numpy

import secagg

_PACKAGES = ("secagg", "dp", "client_sdk", "aggregator", "secagg_cli")


def software() -> dict[str, str]:
    """Name -> version or digest, of what computes and draws a report."""
    return {
        "secagg": secagg.__version__,
        "SHA-256 of its code": code_digest(),
        "Python": platform.python_version(),
        "numpy": numpy.__version__,
    }


def code_digest(root: Path | None = None) -> str:
    """SHA-256 over the Python files of our packages, hex: path, size and content of each, in order.

    Two installations with the same digest run the same code of ours, of whatever version they
    say they are.

    Args:
        root: folder that holds the packages; that of this installation by default.
    """
    root = root or Path(__file__).parent.parent.parent
    digest = hashlib.sha256()
    files = [file for name in _PACKAGES for file in (root / name).rglob("*.py")]
    for path, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        content = file.read_bytes()
        digest.update(f"{path}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
