"""The demo's folder: new or empty, so that nothing of an earlier run is ever overwritten."""

from __future__ import annotations

from pathlib import Path

from secagg_cli.output import CommandError

DEFAULT_NAME = "secagg-demo"


def check_folder(chosen: Path | None) -> None:
    """Refuse a folder with something in it, before any work is done.

    Raises:
        CommandError: ``out-not-empty``.
    """
    if chosen is not None and chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
        raise CommandError(
            "out-not-empty",
            f"{chosen} is not empty.",
            remedy="Name another folder with --out, or remove it.",
        )


def claim_folder(chosen: Path | None) -> Path:
    """The chosen folder, or the first free of ``secagg-demo``, ``secagg-demo-2``, ...

    Raises:
        CommandError: ``out-not-empty``.
    """
    if chosen is not None:
        check_folder(chosen)
        chosen.mkdir(parents=True, exist_ok=True)
        return chosen.resolve()
    number = 1
    while True:
        folder = Path(DEFAULT_NAME if number == 1 else f"{DEFAULT_NAME}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder.resolve()
