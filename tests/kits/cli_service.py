"""Commands against a real service: a partner and its enrolled devices."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from secagg_cli.demo.service import Service
from secagg_cli.main import app


def invoke(service: Service | None, *arguments: str, code: int = 0) -> dict[str, Any]:
    extra = []
    if service is not None:
        extra = ["--server", service.url]
        if arguments[0] != "enroll":
            extra += ["--token-file", str(service.data_dir / "operator.token")]
    done = CliRunner().invoke(app, [*arguments, *extra, "--format", "json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def enrolled(service: Service, key: str, folder: Path, count: int = 1) -> list[Path]:
    arguments = ("--partner-key", key, "--out", str(folder), "--count", str(count))
    return [Path(path) for path in invoke(service, "enroll", *arguments)["bundles"]]
