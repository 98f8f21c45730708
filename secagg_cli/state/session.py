"""``secagg session``: what is pending in a device's state folder, and how to end it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from secagg.files.text import TextFile
from secagg_cli.output import CommandError, Format, FormatOption, Output

if TYPE_CHECKING:
    from client_sdk.maintenance import StateFolder

app = typer.Typer(
    name="session",
    help="Show or reset the unfinished session in a device's state folder.",
    no_args_is_help=True,
)

_PASSPHRASE = TextFile(
    "file of the passphrase", CommandError, "passphrase-unreadable", "passphrase-unreadable"
)
FolderArgument = Annotated[Path, typer.Argument(help="The device's state folder.")]
PassphraseOption = Annotated[
    Path | None, typer.Option(help="File with the passphrase that seals the folder, if one does.")
]


@app.command("show")
def show(
    folder: FolderArgument,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """What is unfinished, which tasks are refused on a ledger, and in which training fails."""
    with Output(format) as out:
        state = _open(folder, passphrase_file)
        pending, refused, failing = state.pending(), state.quarantined(), state.failing()
        if pending is None:
            out.say("no session is unfinished")
        else:
            out.say(f"unfinished: {pending.phase}, task {pending.task or 'unknown'}")
        for entry in refused:
            out.say(f"refused: task {entry.task}, {entry.reason}, see {folder / entry.evidence}")
        for task in failing:
            out.say(f"failing: task {task.task}, {task.count} times in a row, last: {task.last}")
        out.result(
            {
                "session": None if pending is None else asdict(pending),
                "quarantined": [msgspec.to_builtins(entry) for entry in refused],
                "failing": [msgspec.to_builtins(task) for task in failing],
            }
        )


@app.command("reset")
def reset(
    folder: FolderArgument,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """End the unfinished session; account, checkpoints and what was given stay."""
    with Output(format) as out:
        was_pending = _open(folder, passphrase_file).reset_session()
        out.say("the session was ended" if was_pending else "no session was unfinished")
        out.result({"reset": was_pending})


@app.command("release-quarantine")
def release_quarantine(
    folder: FolderArgument,
    task: Annotated[str, typer.Option(help="The task to take part in again.")],
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Admit a task again whose ledger contradicted this device; the evidence stays."""
    with Output(format) as out:
        lifted = _open(folder, passphrase_file).release_quarantine(task)
        out.say(f"{len(lifted)} lifted")
        out.result({"released": [msgspec.to_builtins(entry) for entry in lifted]})


@app.command("try-again")
def try_again(
    folder: FolderArgument,
    task: Annotated[str, typer.Option(help="The task to take part in again.")],
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Begin again with a task in which training failed in a row, once that is mended."""
    with Output(format) as out:
        counted = _open(folder, passphrase_file).try_again(task)
        out.say("this device takes part again" if counted else "no failure was counted")
        out.result({"cleared": counted})


def _open(folder: Path, passphrase_file: Path | None) -> StateFolder:
    from client_sdk.maintenance import StateFolder

    return StateFolder.open(folder, read_passphrase(passphrase_file))


def read_passphrase(file: Path | None) -> str | None:
    """What seals a state folder, from a file without its last line's end; None without a file."""
    if file is None:
        return None
    return _PASSPHRASE.read(file).rstrip("\r\n")
