"""``secagg explain``: what taking part in a task means for a device, before it does."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secagg_cli.join.policy import (
    AllowedModels,
    BaseModel,
    MaxDownload,
    MaxEpsilon,
    MaxMemory,
    MaxTotalEpsilon,
    MinCohort,
    MinCorrupt,
    MinWitnesses,
    PeriodDays,
    PeriodEpsilon,
    PeriodMinutes,
    PeriodTraffic,
    RepeatWithoutNoise,
    TrustPartners,
    Units,
    WithoutNoise,
    Witnesses,
    policy_of,
)
from secagg_cli.network import transport_settings
from secagg_cli.output import Format, FormatOption, Output
from secagg_cli.state.account import BundleArgument, DataIdOption, StateOption
from secagg_cli.state.session import PassphraseOption, read_passphrase

if TYPE_CHECKING:
    from client_sdk import PolicyRefusal


def explain(
    bundle: BundleArgument,
    task: Annotated[str, typer.Option(help="The task to ask about.")],
    state: StateOption = None,
    data_id: DataIdOption = None,
    passphrase_file: PassphraseOption = None,
    model: BaseModel = None,
    allow_model: AllowedModels = None,
    min_cohort: MinCohort = 10,
    min_corrupt: MinCorrupt = None,
    max_epsilon: MaxEpsilon = 8.0,
    max_total_epsilon: MaxTotalEpsilon = 16.0,
    unit: Units = None,
    without_noise: WithoutNoise = False,
    repeat_without_noise: RepeatWithoutNoise = False,
    trust_partner: TrustPartners = None,
    max_download_mb: MaxDownload = 512,
    max_memory_mb: MaxMemory = None,
    period_days: PeriodDays = 30,
    period_mb: PeriodTraffic = None,
    period_minutes: PeriodMinutes = None,
    period_epsilon: PeriodEpsilon = None,
    witness: Witnesses = None,
    min_witnesses: MinWitnesses = None,
    format: FormatOption = Format.text,
) -> None:
    """What taking part in a task means: who learns what, what it costs, what it does not protect.

    From the task's signed manifest and this device's own account. Nothing is fetched but the terms,
    and nothing is given. What it says is refused is what secagg join refuses with the same options;
    an app's own policy may differ.
    """
    with Output(format) as out:
        from client_sdk import Client

        policy = policy_of(
            bundle,
            model=model,
            allow_model=allow_model,
            min_cohort=min_cohort,
            min_corrupt=min_corrupt,
            max_epsilon=max_epsilon,
            max_total_epsilon=max_total_epsilon,
            unit=unit,
            without_noise=without_noise,
            repeat_without_noise=repeat_without_noise,
            trust_partner=trust_partner,
            max_download_mb=max_download_mb,
            max_memory_mb=max_memory_mb,
            period_days=period_days,
            period_mb=period_mb,
            period_minutes=period_minutes,
            period_epsilon=period_epsilon,
            witness=witness,
            min_witnesses=min_witnesses,
        )
        client = Client.from_bundle(
            bundle,
            policy=policy,
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
