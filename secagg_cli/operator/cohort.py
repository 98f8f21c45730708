"""``secagg cohort``: the open cohort of a task."""

from __future__ import annotations

import msgspec
import typer

from secagg_cli.network import networked
from secagg_cli.operator.client import (
    DEFAULT_SERVER,
    Operator,
    ServerOption,
    TokenFileOption,
)
from secagg_cli.operator.task import NameArgument
from secagg_cli.output import Format, FormatOption, Output

app = typer.Typer(no_args_is_help=True, help="The open cohort of a task.")


@app.command("abort")
@networked
def abort(
    name: NameArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """End the task's open cohort, and say what it was charged. Its devices are told, and check in
    again; secagg task pause or close beforehand lets no next one form."""
    with Output(format) as out:
        from dp.accounting.figures import shown_up

        done = Operator.at(server, token_file).abort_cohort(name)
        out.say(f"Cohort {done.cohort[:16]} of {done.size} devices ended in phase {done.phase}.")
        match done.charge:
            case "none":
                out.say("It costs nothing: no device had been told to send.")
            case "given-back":
                out.say("It costs nothing: no device had sent, and its reservation is given back.")
            case "charged":
                spent = "" if done.epsilon is None else f", epsilon {shown_up(done.epsilon)} in all"
                out.say(
                    f"It is charged, as number {done.release} of the task{spent}: a device may "
                    "have sent."
                )
        out.result(msgspec.to_builtins(done))
