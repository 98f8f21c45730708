"""The demo's folder: new or empty, so that nothing of an earlier run is ever overwritten."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from client_sdk import outputs

DEFAULT_NAME = "secagg-demo"


def check_folder(chosen: Path | None) -> None:
    """Refuse a folder with something in it, before any work is done.

    Raises:
        OutputError: ``out-not-empty`` or ``out-unwritable``.
    """
    outputs.check_folder(chosen or _next_free())


def claim_folder(chosen: Path | None) -> Path:
    """The chosen folder, or the first free of ``secagg-demo``, ``secagg-demo-2``, ...

    Raises:
        OutputError: ``out-not-empty`` or ``out-unwritable``.
    """
    if chosen is not None:
        return outputs.make_folder(chosen)
    while True:
        folder = outputs.check_folder(_next_free())
        try:
            folder.mkdir()
        except FileExistsError:  # another demo was faster
            continue
        return folder


def _next_free() -> Path:
    names = (DEFAULT_NAME if n == 1 else f"{DEFAULT_NAME}-{n}" for n in itertools.count(1))
    return next(Path(name) for name in names if not os.path.lexists(name))
