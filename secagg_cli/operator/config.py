"""``secagg config``: the service's settings, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secagg_cli.output import Format, FormatOption, Output

app = typer.Typer(no_args_is_help=True, help="Settings of `secagg serve`.")


@app.command("show")
def show(
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings, as for `secagg serve`.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="The service's data folder, as for `secagg serve`.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """The settings that would count, and where each comes from. Secrets are not shown."""
    with Output(format) as out:
        from aggregator.settings.describe import in_force
        from aggregator.settings.options import Settings

        given: dict[str, Any] = {"config": config, "data_dir": data_dir}
        given = {name: value for name, value in given.items() if value is not None}
        settings = Settings.load(**given)
        found = in_force(settings, given)
        out.table(
            None,
            ["setting", "value", "unit", "from"],
            [[f.name, f.default if f.value is None else f.value, f.unit, f.origin] for f in found],
        )
        out.result(
            {
                "config": None if settings.config is None else str(settings.config),
                "settings": {
                    f.name: {"value": f.value, "unit": f.unit, "from": f.origin} for f in found
                },
            }
        )


@app.command("template")
def template(
    out_file: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: standard output.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """A TOML file of all settings with unit, range, default and meaning, for --config."""
    with Output(format) as out:
        from aggregator.settings.describe import template as settings_template

        written(out, settings_template(), out_file, "secagg serve --config {file}")


def written(out: Output, text: str, file: Path | None, then: str) -> None:
    """A template to a new file, or to standard output. ``then``: the command that reads it."""
    from client_sdk.outputs import check_file, write_file

    if file is None:
        if not out.json:
            typer.echo(text, nl=False)
    else:
        check_file(file)
        write_file(file, text.encode())
        out.say(f"{file} is written. Then: {then.format(file=file)}")
    out.result({"file": None if file is None else str(file), "text": text})
