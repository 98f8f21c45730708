"""``secagg device``: who is banned, who is in question, and the evidence."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from secagg_cli.network import networked
from secagg_cli.operator.client import (
    DEFAULT_SERVER,
    Operator,
    ServerOption,
    TokenFileOption,
)
from secagg_cli.operator.hex_keys import hex_key
from secagg_cli.output import Format, FormatOption, Output, UnusableArgument

app = typer.Typer(no_args_is_help=True, help="Devices that are banned or in question.")
KeyArgument = Annotated[str, typer.Argument(help="The device's key, hex; see secagg device list.")]


@app.command("list")
@networked
def list_(
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """List bans, and devices with strikes that still count."""
    with Output(format) as out:
        found = Operator.at(server, token_file).devices()
        out.say(f"Banned: {len(found.bans)}")
        for row in found.bans:
            out.say(f"  {row.device}")
            task = f", task {row.task}" if row.task else ""
            out.say(f"    {row.kind}{task}, since {_when(row.banned_at)}")
            out.say(f"    reference {row.handle[:16]}, by which its partner appeals")
            if row.note:
                out.say(f"    note: {row.note}")
        out.say(f"In question: {len(found.strikes)}")
        for struck in found.strikes:
            out.say(f"  {struck.device}")
            last = _when(struck.last_at)
            out.say(f"    {struck.strikes} strike(s), score {struck.score}, last {last}")
        for silent in found.never_deal:
            out.say(f"  {silent.device}")
            out.say(f"    {silent.cohorts} cohorts in a row without dealing")
            out.say(f"    in today's log {silent.log_name}")
        out.result(msgspec.to_builtins(found))


@app.command("ban")
@networked
def ban(
    key: KeyArgument,
    note: Annotated[str, typer.Option(help="Why; for the operator, not for the ledger.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Refuse a device from now on. The ledger holds the act, without the device's name."""
    with Output(format) as out:
        shown = Operator.at(server, token_file).ban(device_key(key), note)
        out.say(
            f"Banned. Its reference is {shown.handle[:16]}: so the ledger calls the device, and "
            "by it its partner appeals."
        )
        if not shown.seen:
            out.warn(
                "No device with this key has reported in lately. The ban holds should one do so; "
                "compare the key with the partner's bundle if you expected one."
            )
        out.result(msgspec.to_builtins(shown))


@app.command("unban")
@networked
def unban(
    key: KeyArgument,
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Lift a ban, and forget the device's strikes."""
    with Output(format) as out:
        Operator.at(server, token_file).unban(device_key(key))
        out.say("The ban is lifted.")
        out.result({"device": key, "banned": False})


@app.command("evidence")
@networked
def evidence(
    key: KeyArgument,
    out_file: Annotated[Path, typer.Option("--out", help="Where the evidence goes.")],
    server: ServerOption = DEFAULT_SERVER,
    token_file: TokenFileOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Write the evidence against a banned device. It names every device of that cohort."""
    with Output(format) as out:
        from client_sdk.outputs import check_file, write_file
        from secagg.evidence import decode_evidence

        def is_evidence(path: Path) -> bool:
            return bool(decode_evidence(path.read_bytes()))

        check_file(out_file, is_evidence)
        data = Operator.at(server, token_file).evidence(device_key(key))
        write_file(out_file, data, is_evidence, private=True)
        shown = _verdict(data)
        out.say(f"{out_file} written: {shown['kind']}.")
        if not shown["transferable"]:
            out.warn(
                "Others cannot check this kind, and an answer to unmask holds shares of other "
                "devices' secrets. Keep it to yourself."
            )
        out.result({**shown, "file": str(out_file)})


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(help="Evidence, as secagg device evidence wrote it.")],
    format: FormatOption = Format.text,
) -> None:
    """Check evidence offline, believing nobody. Exit code 1 if it convicts nobody."""
    with Output(format) as out:
        from secagg.evidence import verify_evidence

        try:
            content = file.read_bytes()
        except OSError as error:
            raise UnusableArgument(
                "evidence-unreadable", f"{file} cannot be read: {error.strerror or error}."
            ) from error
        verdict = verify_evidence(content)
        out.say(f"Device {verdict.identity.hex()} is convicted: {verdict.kind}.")
        out.result(
            {
                "device": verdict.identity.hex(),
                "partner": verdict.partner.hex(),
                "kind": verdict.kind,
                "task": verdict.task,
                "cohort": verdict.cohort.hex(),
            }
        )


def device_key(text: str) -> bytes:
    """A device's key from hex.

    Raises:
        CommandError: ``device-key``.
    """
    return hex_key(text, "A device's key", "device-key", "secagg device list shows devices' keys.")


def _verdict(data: bytes) -> dict[str, Any]:
    from secagg.evidence import TRANSFERABLE, decode_evidence

    found = decode_evidence(data)
    return {"kind": found.kind, "transferable": found.kind in TRANSFERABLE, "bytes": len(data)}


def _when(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
