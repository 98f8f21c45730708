"""``secagg account``: what a device has spent, by its own account."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.session import PassphraseOption, read_passphrase

app = typer.Typer(no_args_is_help=True, help="A device's own account of privacy.")


@app.callback()
def _group() -> None:
    """Keeps the one command a subcommand."""


@app.command("recover")
def recover(
    bundle: Annotated[Path, typer.Argument(help="The device's enrolment bundle.")],
    state: Annotated[
        Path | None, typer.Option(help="This device's own folder: journal and budget.")
    ] = None,
    leaves_max: Annotated[
        int | None, typer.Option(help="Read a ledger of at most so many records.", min=1)
    ] = None,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Find all charges of a device in the ledger and add those that its account lacks.

    For a device whose state folder was lost. Nothing is ever taken off an account. A cohort that
    has not ended is in no record yet: run it again later. Charges that no record lists are shown.
    """
    with Output(format) as out:
        from client_sdk import Client
        from client_sdk.recovery import LEAVES_MAX

        passphrase = read_passphrase(passphrase_file)
        client = Client.from_bundle(bundle, state_dir=state, passphrase=passphrase)
        found = client.recover_account(leaves_max or LEAVES_MAX)
        for task, charges in found.charges.items():
            epsilon = found.epsilons[task]
            spent = "no differential privacy" if epsilon is None else f"epsilon {epsilon:.4f}"
            out.say(f"{task}: charged in {charges} cohorts, {spent}")
        out.say(f"{found.added} charges added to the account; {found.leaves} records read.")
        if found.unlisted:
            out.say(
                f"{len(found.unlisted)} charges of the account are in no record: of cohorts that "
                "have not ended, that failed before anybody sent, or that are not shown."
            )
        out.result(
            {
                "charges": dict(found.charges),
                "epsilons": dict(found.epsilons),
                "added": found.added,
                "unlisted": list(found.unlisted),
                "records": found.leaves,
            }
        )
