"""``secagg forget``: delete a device from this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.state.account import BundleArgument, DataIdOption, StateOption
from secagg_cli.state.session import PassphraseOption, read_passphrase


def forget(
    bundle: BundleArgument,
    state: StateOption = None,
    data_id: DataIdOption = None,
    registry: Annotated[
        Path | None,
        typer.Option(help="The folder of the data sets' accounts, if the app names one."),
    ] = None,
    also_account: Annotated[
        bool,
        typer.Option(
            "--also-account",
            help="Forget what was spent of the data too: the same data may then be spent again.",
        ),
    ] = False,
    end_session: Annotated[
        bool,
        typer.Option(
            "--end-session",
            help="Also while a masked vector is on its way; its cohort goes on without this "
            "device, and the charge stays.",
        ),
    ] = False,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Delete a device: its bundle, journal and models. What was spent of its data stays counted.

    It says what is kept, and what cannot be undone. A command that was killed goes on when it is
    given again. It needs no network.
    """
    with Output(format) as out:
        from client_sdk import Client
        from client_sdk.enrolment import load_bundle

        ends = load_bundle(bundle).certificate.not_after
        client = Client.from_bundle(
            bundle,
            state_dir=state,
            passphrase=read_passphrase(passphrase_file),
            data_id=data_id,
            registry_dir=registry,
            clock=lambda: min(
                time.time(), ends
            ),  # a device that may serve no more can be forgotten
        )
        forgotten = client.forget(also_account=also_account, end_session=end_session)
        out.say(forgotten.text())
        out.result(
            {
                "removed": [str(path) for path in forgotten.removed],
                "kept": [str(path) for path in forgotten.kept],
                "account": forgotten.account,
                "charges": dict(forgotten.charges),
                "identity": forgotten.identity,
                "lasting": list(forgotten.lasting),
            }
        )
