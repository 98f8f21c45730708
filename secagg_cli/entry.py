"""The entry point of ``secagg``, which also runs where only a device's packages are installed."""

from __future__ import annotations

import json
import sys

from secagg_cli.exit_codes import EXIT_REFUSED
from secagg_cli.extras import missing_package, wants_json


def main() -> None:
    """Run the command, or say which extra brings what it needs."""
    try:
        from secagg_cli.main import main as command
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        message, remedy = missing
        print(f"{message} [package-missing]\n{remedy}", file=sys.stderr)
        if wants_json(sys.argv):
            told = {"reason": "package-missing", "message": message, "remedy": remedy}
            print(json.dumps({"error": told}))
        sys.exit(EXIT_REFUSED)
    command()
