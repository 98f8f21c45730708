"""How every command speaks: text for people, or exactly one JSON object for programs.

With ``--format json`` standard output carries one JSON object and nothing else; text for people,
and progress bars, go to standard error. Exit codes: :mod:`secagg_cli.exit_codes`.
"""

from __future__ import annotations

import contextlib
import enum
import json
import math
import os
import sys
import traceback
import unicodedata
from collections.abc import Mapping
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from dp.accounting.figures import shown_up
from secagg.errors import SecaggError
from secagg_cli.exit_codes import EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_UNREACHABLE, EXIT_USAGE
from secagg_cli.extras import missing_package

_WIDE = 1_000
_answered = False


class Format(enum.StrEnum):
    text = "text"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="json prints exactly one JSON object on standard output.")
]


class CommandError(SecaggError):
    """A command could not do what was asked."""


class UnusableArgument(CommandError):
    """What the command line names is not there, or is not what it has to be."""


class Output:
    """One command's voice; use it as a context manager around the command's work.

    Leaving the context with a :class:`SecaggError` prints it with its remedy and exits with 1;
    Ctrl-C exits with 130. ``result`` may be called once.
    """

    def __init__(self, format: Format) -> None:
        self.json = format is Format.json
        self.errors = Console(stderr=True, highlight=False)
        self.text = self.errors if self.json else Console(highlight=False)
        if not self.text.is_terminal:
            self.text.width = _WIDE  # a file or a pipe has no margin

    def say(self, message: str = "", *, style: str | None = None) -> None:
        """A line for people. ``message`` is plain text, not markup."""
        self.text.print(_plain(message), style=style, soft_wrap=True)

    def warn(self, message: str) -> None:
        self.errors.print(f"[yellow]warning:[/yellow] {_plain(message)}", soft_wrap=True)

    def table(self, title: str | None, columns: list[str], rows: list[list[object]]) -> None:
        """Nothing is cut: what does not fit goes on in the next line."""
        table = Table(title=title and _plain(title), title_justify="left")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(_plain(str(cell)) for cell in row))
        self.text.print(table)

    def progress(self, *, download: bool = False) -> Progress:
        """A progress bar on standard error; silent where that is not a terminal."""
        amount = DownloadColumn() if download else MofNCompleteColumn()
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TimeElapsedColumn(),
            console=self.errors,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else text for a file would go to the terminal
            disable=not self.errors.is_terminal,
        )

    def result(self, keys: Mapping[str, Any]) -> None:
        """What programs read: printed only with ``--format json``."""
        if self.json:
            print_json(keys)

    def refuse(self, error: SecaggError, keys: Mapping[str, Any]) -> NoReturn:
        """End with ``error`` as leaving with it does, and tell programs what was done before."""
        self._refuse(error.reason, error.detail, error.remedy, keys)
        raise typer.Exit(_exit_code(error)) from error

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or isinstance(error, typer.Exit):
            return
        if isinstance(error, KeyboardInterrupt):
            self._refuse("interrupted", "Interrupted.", None)
            raise typer.Exit(EXIT_INTERRUPTED) from error
        if isinstance(error, SecaggError):
            self._refuse(error.reason, error.detail, error.remedy)
            raise typer.Exit(_exit_code(error)) from error
        if isinstance(error, ModuleNotFoundError) and (missing := missing_package(error)):
            self._refuse("package-missing", *missing)
            raise typer.Exit(EXIT_REFUSED) from error
        if isinstance(error, BrokenPipeError):
            end_of_output(error)
            raise typer.Exit(EXIT_REFUSED) from error
        if isinstance(error, OSError):
            self._refuse("system-error", f"{type(error).__name__}: {error}", None)
            raise typer.Exit(EXIT_REFUSED) from error
        if isinstance(error, Exception):
            traceback.print_exception(kind, error, trace)
            self._refuse(
                "internal-error",
                f"{type(error).__name__}: {error}",
                "This is a defect; please report the lines above.",
            )
            raise typer.Exit(EXIT_REFUSED) from error

    def _refuse(
        self, reason: str, message: str, remedy: str | None, keys: Mapping[str, Any] | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            self.errors.print(f"[red]{_plain(message)}[/red] \\[{_plain(reason)}]", soft_wrap=True)
            if remedy:
                self.errors.print(_plain(remedy), soft_wrap=True)
        if self.json:
            try:
                error_ = {"reason": reason, "message": message, "remedy": remedy}
                print_json({**(keys or {}), "error": error_})
            except OSError as error:
                end_of_output(error)


def _exit_code(error: SecaggError) -> int:
    if error.unreached:
        return EXIT_UNREACHABLE
    if error.reason == "interrupted":
        return EXIT_INTERRUPTED
    return EXIT_USAGE if isinstance(error, UnusableArgument) else EXIT_REFUSED


def _plain(text: str) -> str:
    return escape(visible(text))


def visible(text: str) -> str:
    """Text that may be somebody else's: what moves the cursor, turns the direction of writing or
    shows nothing becomes its escape, such as ``\\u202e``."""
    return "".join(
        each
        if each.isprintable() or each in "\n\t" or unicodedata.category(each) == "Zs"
        else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def open_streams() -> None:
    """A standard stream that the caller has closed (``>&-``) leads nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def end_of_output(error: OSError) -> None:
    """Standard output takes no more: a full disk is told, a reader that has gone is not.

    What is still in its buffer goes nowhere, since the interpreter would fail over it at its end.
    """
    if not isinstance(error, BrokenPipeError):
        with contextlib.suppress(OSError):
            print(f"Standard output cannot be written: {error.strerror}.", file=sys.stderr)
    with contextlib.suppress(OSError, ValueError):  # ValueError: not a real stream
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def answered() -> bool:
    """Whether this process has printed its JSON object."""
    return _answered


def print_json(keys: Mapping[str, Any]) -> None:
    """One line of strict JSON; numbers that are not finite become null."""
    global _answered
    _answered = True
    sys.stdout.write(json.dumps(_finite(keys), allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def power(log2: float) -> str:
    """The bound of a probability, given by its log2, for people: rounded up."""
    return f"2^{shown_up(log2, 1)}" if math.isfinite(log2) else "0"


def power_log2(log2: float) -> float | None:
    """The same for JSON, the exponent alone; None where the probability is 0."""
    return float(shown_up(log2, 3)) if math.isfinite(log2) else None
