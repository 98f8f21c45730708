"""``secagg serve``: the aggregator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secagg.errors import SecaggError
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.processes import die_with_parent
from secagg_cli.ranges import number


def serve(
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings; the environment overrides it.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, number("Port for devices; 0: any free one.", low=0, high=65_535)
    ] = None,
    admin_port: Annotated[
        int | None,
        number("Port for health and metrics; 0: any free one.", low=0, high=65_535),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the database, blobs, keys and ledger.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Run the aggregator until SIGTERM or Ctrl-C. Its log goes to standard error."""
    with Output(format):
        die_with_parent()
        from aggregator.logs import tell_refused_start
        from aggregator.main import serve as run
        from aggregator.settings.options import Settings

        given: dict[str, Any] = {
            "host": host,
            "port": port,
            "admin_port": admin_port,
            "data_dir": data_dir,
        }
        try:
            run(Settings.load(config, **{k: v for k, v in given.items() if v is not None}))
        except SecaggError as error:
            tell_refused_start(error)  # a line as all others of the log
            raise
