"""``secagg witness``: watch other people's ledgers, and say so with a signature."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secagg.files.folders import demand_own_folder, file_in_the_way
from secagg.files.text import TextFile
from secagg_cli.audit.ledger_files import read_key
from secagg_cli.output import CommandError, Format, FormatOption, Output
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from secagg.secret import Secret
    from secagg_cli.witness.service import Witness

_FILES = ("witness.key", "witness.db")
_KEY = TextFile("witness's key", CommandError, "witness-key", "witness-key", 4_096, "witness-key")
app = typer.Typer(no_args_is_help=True, help="Witness ledgers: cosign what only ever grew.")


@app.callback()
def witness() -> None:
    """Witness ledgers: cosign what only ever grew."""


@app.command("serve")
def serve(
    name: Annotated[str, typer.Option(help="Name of this witness, such as example.org/w1.")],
    log: Annotated[
        list[str], typer.Option(help="A ledger's verifier key, or a file with it; repeatable.")
    ],
    data_dir: Annotated[Path, typer.Option(help="Folder of its key and of what it has seen.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, number("Port; 0: any free one.", low=0, high=65_535)] = 8082,
    format: FormatOption = Format.text,
) -> None:
    """Cosign the checkpoints of the given ledgers (C2SP tlog-witness) until SIGTERM or Ctrl-C.

    Prints one JSON line with its address and the verifier key that devices and auditors need.
    """
    with Output(format):
        from secagg_cli.witness.service import Witness

        demand_own_folder(
            data_dir, "witness's folder", _FILES, (), CommandError, "witness-folder-taken"
        )
        if file := file_in_the_way(data_dir):
            raise CommandError(
                "witness-folder",
                f"{file} is a file, and a folder is needed there.",
                remedy="Name a new or an empty folder with --data-dir.",
            )
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        service = Witness(
            data_dir / "witness.db",
            name,
            _seed(data_dir / "witness.key"),
            [read_key(key) for key in log],
            time.time,
        )
        asyncio.run(_serve(service, host, port))


def _seed(path: Path) -> Secret:
    from secagg.secret import Secret

    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
        seed = bytes.fromhex(_KEY.read(path).strip())
        if len(seed) != 32:
            raise ValueError("it does not hold 32 bytes in hex")
    except (OSError, ValueError) as error:
        raise CommandError("witness-key", f"{path} cannot be used: {error}.") from error
    return Secret(seed)


async def _serve(service: Witness, host: str, port: int) -> None:
    from aiohttp import web

    from aggregator.http.connections import Connections, Site
    from secagg_cli.witness.service import build_witness_app

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    runner = web.AppRunner(build_witness_app(service), access_log=None)
    await runner.setup()
    try:
        await Site(runner, host, port, Connections(max=256, per_address=128)).start()
        bound = runner.addresses[0]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        address = f"http://{shown}:{bound[1]}"
        print(json.dumps({"listening": address, "verifier": service.verifier}), flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()
