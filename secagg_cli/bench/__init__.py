"""``secagg bench``: what the parts cost on this machine, each beside its limit."""

from __future__ import annotations

import typer

from secagg_cli.bench import mask, protocol

app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
app.command("mask")(mask.mask)
app.command("protocol")(protocol.protocol)
