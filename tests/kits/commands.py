"""Commands, run as a user runs them."""

import json
from typing import Any

from typer.testing import CliRunner

from secagg_cli.main import app


def invoke(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)
