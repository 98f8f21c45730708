"""``secagg bundle``: a fleet's bundles where they lie as files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from secagg_cli.network import base_url, networked, transport_settings
from secagg_cli.output import Format, FormatOption, Output, UnusableArgument

_PATIENCE_S = 5.0
app = typer.Typer(name="bundle", no_args_is_help=True, help="Enrolment bundles of devices.")


@app.callback()
def bundle() -> None:
    """Enrolment bundles of devices."""


@app.command("repoint")
@networked
def repoint(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundles, or folders of bundles: every *.json in them.")
    ],
    server: Annotated[str, typer.Option(help="The aggregator's new address.")],
    format: FormatOption = Format.text,
) -> None:
    """Give bundles another address of the same aggregator; identities and accounts stay.

    Refused, and no file changed, where the address is not of the aggregator that all of them were
    enrolled with.
    """
    with Output(format) as out:
        from client_sdk.repointing import repoint_bundles

        base_url(server)
        files = list(_files(bundles))
        changed = repoint_bundles(
            files, server, transport=transport_settings(patience_s=_PATIENCE_S)
        )
        out.say(f"{len(changed)} of {len(files)} bundle(s) changed: {server}.")
        out.result({"changed": [str(path) for path in changed], "bundles": len(files)})


def _files(named: list[Path]) -> Iterator[Path]:
    """Raises: UnusableArgument ``bundles-missing`` of a folder without any."""
    for path in named:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(path.glob("*.json"))
        if not inside:
            raise UnusableArgument(
                "bundles-missing",
                f"{path} holds no bundle: no file in it ends in .json.",
                remedy="Name the folder that `secagg enroll --out` wrote.",
            )
        yield from inside
