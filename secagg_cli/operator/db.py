"""``secagg db``: the schema of a service's database, and whose it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secagg_cli.output import Format, FormatOption, Output

if TYPE_CHECKING:
    from aggregator.maintenance import Maintenance

app = typer.Typer(
    no_args_is_help=True,
    help="Check a service's database and bring its schema up or down. Stop the service first.",
)
ConfigOption = Annotated[
    Path | None, typer.Option(help="TOML file of the service's settings, as for `secagg serve`.")
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="The service's data folder, as for `secagg serve`.")
]


def _on_database(
    config: Path | None,
    data_dir: Path | None,
    work: Callable[[Maintenance], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    from aggregator.maintenance import Maintenance
    from aggregator.settings.options import Settings

    given = {} if data_dir is None else {"data_dir": data_dir}

    async def run() -> dict[str, Any]:
        async with Maintenance(Settings.load(config, **given)) as maintenance:
            return await work(maintenance)

    return asyncio.run(run())


def _say(output: Output, found: dict[str, Any]) -> None:
    for name, value in found.items():
        output.say(f"{name.replace('_', ' ')}: {value}")
    output.result(found)


@app.command("check")
def check(
    config: ConfigOption = None, data_dir: DataDirOption = None, format: FormatOption = Format.text
) -> None:
    """Say whether a service with these settings would start on its database; writes nothing.

    It compares the version of the schema, the keys, the ledger's name and its folder, and the blob
    store's mark, and opens all sealed cells. It prints the task key and the ledger's verifier that
    partners compare with what `secagg enroll` prints.
    """
    with Output(format) as output:
        _say(output, _on_database(config, data_dir, lambda database: database.check()))


@app.command("upgrade")
def upgrade(
    to: Annotated[str | None, typer.Option(help="Version to stop at; default: the newest.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Bring the schema up. Stop all replicas and make a backup first."""
    with Output(format) as output:
        _say(output, _on_database(config, data_dir, lambda database: database.upgrade(to)))


@app.command("downgrade")
def downgrade(
    to: Annotated[str, typer.Option(help="Version to go back to, which the older software has.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    format: FormatOption = Format.text,
) -> None:
    """Bring the schema down, before older software is run again.

    Stop all replicas and make a backup first: what the older schema has no place for is lost.
    """
    with Output(format) as output:
        _say(output, _on_database(config, data_dir, lambda database: database.downgrade(to)))


@app.command("reseal")
def reseal(
    config: ConfigOption = None, data_dir: DataDirOption = None, format: FormatOption = Format.text
) -> None:
    """Seal what other keys sealed under the first of sealing.keys, so that the others may go."""
    with Output(format) as output:
        _say(output, _on_database(config, data_dir, lambda database: database.reseal()))
