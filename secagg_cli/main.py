"""The ``secagg`` command.

Nothing heavy is imported here: each command imports what it needs when it runs, so that
``secagg --help``, and a device that only has to finish its masking, load no torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from secagg import __version__
from secagg_cli import bench, doctor, simulate
from secagg_cli.audit import command as audit
from secagg_cli.demo import command as demo
from secagg_cli.exit_codes import EXIT_REFUSED, EXIT_USAGE
from secagg_cli.extras import wants_json
from secagg_cli.join import command as join
from secagg_cli.join import explain
from secagg_cli.network import networked
from secagg_cli.operator import (
    bundle,
    cohort,
    config,
    db,
    devices,
    enroll,
    ledger,
    serve,
    task,
    token,
)
from secagg_cli.output import answered, end_of_output, open_streams, print_json
from secagg_cli.plan import command as plan
from secagg_cli.state import account, forget, session
from secagg_cli.witness import command as witness

app = typer.Typer(
    name="secagg",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"secagg {__version__}")
        raise typer.Exit


@app.callback()
def secagg(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Secure aggregation and differential privacy for federated fine-tuning."""


app.command("demo", cls=demo.DemoCommand)(demo.demo)
app.command("serve")(serve.serve)
app.add_typer(config.app, name="config")
app.add_typer(db.app, name="db")
app.add_typer(task.app, name="task")
app.add_typer(cohort.app, name="cohort")
app.add_typer(token.app, name="token")
app.add_typer(ledger.app, name="ledger")
app.add_typer(enroll.partner_app, name="partner")
app.add_typer(devices.app, name="device")
app.command("enroll")(networked(enroll.enroll))
app.add_typer(bundle.app, name="bundle")
app.command("join")(networked(join.join))
app.add_typer(account.app, name="account")
app.add_typer(session.app, name="session")
app.command("explain")(networked(explain.explain))
app.command("forget")(forget.forget)
app.add_typer(audit.app, name="audit")
app.add_typer(witness.app, name="witness")
app.add_typer(plan.app, name="plan")
app.add_typer(bench.app, name="bench")
app.command("simulate")(simulate.simulate)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point; a wrong command line keeps the promise of one JSON object too."""
    open_streams()
    try:
        try:
            app(prog_name="secagg")  # also where it runs as a module
        except SystemExit as exit_:
            if exit_.code == EXIT_USAGE and wants_json(sys.argv) and not answered():
                print_json(
                    {
                        "error": {
                            "reason": "usage",
                            "message": "The command line was not understood; see standard error.",
                            "remedy": "Run the command with --help.",
                        }
                    }
                )
            raise
        finally:
            sys.stdout.flush()  # here, where a full disk is still told
    except OSError as error:
        end_of_output(error)
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
