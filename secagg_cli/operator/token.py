"""``secagg token``: the operators' token."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated

import typer

from secagg_cli.network import networked
from secagg_cli.operator.client import (
    DEFAULT_SERVER,
    Operator,
    ServerOption,
    TokenFileOption,
    read_token,
)
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

app = typer.Typer(no_args_is_help=True, help="The operators' token.")
_BYTES = 32
_LENGTH = 43  # characters of so many bytes
_DAY_S = 86_400


@app.command("rotate")
@networked
def rotate(
    out_file: Annotated[
        Path,
        typer.Option(
            "--out", help="New file for the new token. One of a try before is used again."
        ),
    ],
    overlap: Annotated[
        int,
        number(
            "Seconds for which the tokens of before are taken too; 0: no more from now on.",
            low=0,
            high=30 * _DAY_S,
        ),
    ] = _DAY_S,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Draw a new token, and let the service take it on all replicas, without a restart.

    The token is written to the file first, and only its digest is sent.
    """
    with Output(format) as out:
        from client_sdk.outputs import check_file, write_file

        operator = Operator.at(server, token_file)
        place = check_file(out_file, _is_token)
        token = read_token(place) if place.exists() else secrets.token_urlsafe(_BYTES)
        if hmac.compare_digest(token, read_token(token_file)):
            raise CommandError(
                "token-in-force",
                f"{out_file} holds the token that this command shows: nothing was drawn, and "
                "nothing has changed.",
                remedy="Name a new file with --out. Where a try before was answered late, this "
                "token is in force already.",
            )
        write_file(out_file, f"{token}\n".encode(), _is_token, private=True)
        rotated = operator.rotate_token(hashlib.sha256(token.encode()).hexdigest(), overlap)
        until = datetime.datetime.fromtimestamp(rotated.old_until, datetime.UTC)
        out.say(f"{out_file} has the operators' token from now on.")
        out.say(
            f"Those of before are taken until {until:%Y-%m-%d %H:%M:%S} UTC."
            if overlap
            else "Those of before are taken no more."
        )
        out.say("Give it to commands by --token-file, and to the setting operator_token if one is.")
        out.result({"file": str(out_file), "old_until": rotated.old_until})


def _is_token(file: Path) -> bool:
    """Whether an earlier call drew what is in the file."""
    text = file.read_text("ascii").strip()
    return len(text) == _LENGTH and all(c.isalnum() or c in "-_" for c in text)
