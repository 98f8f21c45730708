"""``secagg ledger``: the keys by which a service and its ledger are known."""

from __future__ import annotations

import hashlib

import typer

from secagg_cli.network import networked
from secagg_cli.operator.client import DEFAULT_SERVER, ServerOption, server_info
from secagg_cli.output import Format, FormatOption, Output

app = typer.Typer(no_args_is_help=True, help="The ledger's key.")


@app.command("key")
@networked
def key(server: ServerOption = DEFAULT_SERVER, format: FormatOption = Format.text) -> None:
    """Print the ledger's verifier key and the task key, with fingerprints to compare.

    Auditors give the verifier to `secagg audit --key`; witnesses and devices know the ledger by it.
    """
    with Output(format) as out:
        found = server_info(server)
        verifier, task = found.ledger_verifier, found.task_key
        name, _, rest = verifier.partition("+")
        prints = {
            "verifier": hashlib.sha256(verifier.encode()).hexdigest(),
            "task_key": hashlib.sha256(task).hexdigest(),
        }
        out.say(f"ledger: {name}")
        out.say(f"verifier key: {verifier}")
        out.say(f"its key id: {rest.partition('+')[0]}")
        out.say(f"its fingerprint (SHA-256): {_grouped(prints['verifier'])}")
        out.say(f"task key: {task.hex()}")
        out.say(f"its fingerprint (SHA-256): {_grouped(prints['task_key'])}")
        out.say(
            "Compare them with the operator's over another way than this address. A service keeps "
            "both keys for its life: the ledger has a record for a second key "
            "(key-rotation), which auditors read and this service does not write."
        )
        out.result(
            {
                "ledger": name,
                "verifier": verifier,
                "verifier_sha256": prints["verifier"],
                "task_key": task.hex(),
                "task_key_sha256": prints["task_key"],
                "rotation": "none",
            }
        )


def _grouped(digest: str) -> str:
    return " ".join(digest[at : at + 8] for at in range(0, len(digest), 8))
