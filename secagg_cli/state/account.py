"""``secagg account``: what a device has spent, by its own account."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from secagg_cli.network import networked, transport_settings
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.ranges import number
from secagg_cli.state.session import FolderArgument, PassphraseOption, read_passphrase

if TYPE_CHECKING:
    from client_sdk.accounts.turns import Turns
    from dp.accounting.budget import Total

app = typer.Typer(no_args_is_help=True, help="A device's own account of privacy.")

BundleArgument = Annotated[Path, typer.Argument(help="The device's enrolment bundle.")]
StateOption = Annotated[
    Path | None, typer.Option(help="This device's own folder: journal and budget.")
]
DataIdOption = Annotated[
    str | None,
    typer.Option(
        help="Your own stable name of the data. Devices of this user that name the same one share "
        "one budget."
    ),
]
_ALL_RECORDS_S = 3_600.0
_DELTA = 1e-5  # of totals, as in the default policy


@app.command("show")
def show(
    folder: FolderArgument,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """What was spent of a state folder's data, and which folders count together."""
    with Output(format) as out:
        from client_sdk.maintenance import StateFolder

        account = StateFolder.open(folder, read_passphrase(passphrase_file)).account(_DELTA)
        data = account.data
        counts = "folder" if data is None else "data" if data.named else "user"
        folders = (folder.absolute(),) if data is None else data.folders
        tasks = {
            task: {
                "charges": account.charges(task),
                "epsilon": account.epsilon(task),
                "delta": account.delta(task),
                "schedules": [asdict(turns) for turns in account.turns(task)],
            }
            for task in account.tasks()
        }
        for task in tasks:
            charges, epsilon = account.charges(task), account.epsilon(task)
            out.say(_charged(task, charges, epsilon, account.delta(task)))
            for turns in account.turns(task):
                out.say(_served(turns))
        say_totals(out, account.totals())
        out.say(_COUNTS[counts])
        for path in folders:
            out.say(f"  {path}" + ("" if path.is_dir() else " (gone; what it spent counts)"))
        if data is not None and data.renewed:
            out.say(f"It was begun anew {data.renewed} times after a loss: there may be more.")
        out.result(
            {
                "counts": counts,
                "folders": [{"path": str(path), "there": path.is_dir()} for path in folders],
                "tasks": tasks,
                "totals": totals_json(account.totals()),
                "delta": _DELTA,
                "renewed": 0 if data is None else data.renewed,
            }
        )


_COUNTS = {
    "folder": "This folder counts alone; what others spend of the same data is not known here:",
    "user": "It counts all folders of this user whose data nobody has named:",
    "data": "It counts all folders of this data set:",
}


@app.command("renew")
def renew(
    bundle: BundleArgument,
    state: StateOption = None,
    data_id: DataIdOption = None,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Begin the account of a data set anew, where it was lost (data-account-missing).

    It then has what this state folder has; secagg account recover adds what the ledger shows. Each
    other folder brings its own part when it does the same. That it was begun anew is remembered.
    """
    with Output(format) as out:
        from client_sdk import Client

        passphrase = read_passphrase(passphrase_file)
        client = Client.from_bundle(bundle, state_dir=state, passphrase=passphrase, data_id=data_id)
        renewed = client.renew_data_account()
        out.say(f"The account is there; it was begun anew {renewed} times after a loss.")
        out.result({"renewed": renewed})


@app.command("recover")
@networked
def recover(
    bundle: BundleArgument,
    state: StateOption = None,
    data_id: DataIdOption = None,
    leaves_max: Annotated[
        int | None, number("Read a ledger of at most so many records.", low=1)
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
        from client_sdk.accounts.recovery import LEAVES_MAX

        passphrase = read_passphrase(passphrase_file)
        client = Client.from_bundle(
            bundle,
            state_dir=state,
            passphrase=passphrase,
            data_id=data_id,
            transport=transport_settings(ledger_s=_ALL_RECORDS_S),
        )
        found = client.recover_account(leaves_max or LEAVES_MAX)
        for task, charges in found.charges.items():
            out.say(_charged(task, charges, found.epsilons[task], found.deltas[task]))
        say_totals(out, found.totals)
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
                "deltas": dict(found.deltas),
                "added": found.added,
                "unlisted": list(found.unlisted),
                "records": found.leaves,
                "totals": totals_json(found.totals),
            }
        )


def _charged(task: str, charges: int, epsilon: float | None, delta: float) -> str:
    """What a task cost of what it makes a statement about; totals say what it costs each unit.

    It has a delta of its own, other than that of the totals.
    """
    from dp.accounting.figures import delta_shown, shown_up

    spent = "no differential privacy"
    if epsilon is not None:
        cost = f"epsilon {shown_up(epsilon)} at delta {delta_shown(delta)}"
        finite = f"{cost} for one unit that it protects"
        spent = finite if math.isfinite(epsilon) else "no finite epsilon"
    return f"{task}: charged in {charges} cohort{'' if charges == 1 else 's'}, {spent}"


def _served(turns: Turns) -> str:
    """How often a unit served in a task with a schedule, and when that number will rise."""
    rises = f"the next charge makes it {turns.participations + 1}"
    stays = f"{turns.left} more charge{'s leave' if turns.left > 1 else ' leaves'} it at that"
    return (
        f"  {turns.unit}s serve in turn, in {turns.period} parts: each is in at most "
        f"{turns.participations} of these sums; {stays if turns.left else rises}"
    )


def say_totals(out: Output, totals: Sequence[Total]) -> None:
    """What all tasks of a device have cost its data, and which leave no finite total."""
    from dp.report.totals import together

    for total in totals:
        out.say(f"by this device's account: {together(total)}")


def totals_json(totals: Sequence[Total]) -> list[dict[str, Any]]:
    """Each total, and the sentence about it; what is infinite is null."""
    from dp.report.totals import together

    return [{**msgspec.to_builtins(total), "text": together(total)} for total in totals]
