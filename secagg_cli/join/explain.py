"""``secagg explain``: what taking part in a task means for a device, before it does."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secagg_cli.join.policy import PolicyOptions, with_policy
from secagg_cli.network import transport_settings
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.state.account import BundleArgument, DataIdOption, StateOption
from secagg_cli.state.session import PassphraseOption, read_passphrase

if TYPE_CHECKING:
    from client_sdk import PolicyRefusal


@with_policy
def explain(
    *,
    bundle: BundleArgument,
    task: Annotated[str, typer.Option(help="The task to ask about.")],
    options: PolicyOptions,
    state: StateOption = None,
    data_id: DataIdOption = None,
    passphrase_file: PassphraseOption = None,
    format: FormatOption = Format.text,
) -> None:
    """What taking part in a task means: who learns what, what it costs, what it does not protect.

    From the task's signed manifest and this device's own account. Nothing is fetched but the terms,
    and nothing is given. What it says is refused is what secagg join refuses with the same options;
    an app's own policy may differ.
    """
    with Output(format) as out:
        from client_sdk import Client

        client = Client.from_bundle(
            bundle,
            policy=options.policy(bundle),
            state_dir=state,
            passphrase=read_passphrase(passphrase_file),
            data_id=data_id,
            transport=transport_settings(),
        )
        found = client.explain(task)
        out.say(found.text())
        keys = {name: value for name, value in vars(found).items() if name != "refusals"}
        out.result(
            {
                **keys,
                "costs": [asdict(cost) for cost in found.costs],
                "seen_by": [{"who": who, "what": what} for who, what in found.seen_by],
                "refusals": [_refused(refusal) for refusal in found.refusals],
                "text": found.text(),
            }
        )


def _refused(refusal: PolicyRefusal) -> dict[str, Any]:
    return {
        "reason": refusal.reason,
        "message": refusal.message,
        "expected": refusal.expected,
        "found": refusal.found,
        "remedy": refusal.remedy,
        "again_at": refusal.again_at,
    }
