"""The device's veto on the command line: the options of ``secagg join`` and ``secagg explain``."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secagg_cli.audit.ledger_files import witness_keys
from secagg_cli.operator.enroll import parse_partner_key
from secagg_cli.output import CommandError
from secagg_cli.ranges import number

if TYPE_CHECKING:
    from client_sdk import PeriodLimits, PolicyRefusal, PrivacyPolicy

_PERIOD_OPTIONS = {  # by reason
    "bytes-of-period": "--period-mb",
    "training-of-period": "--period-minutes",
    "epsilon-of-period": "--period-epsilon",
}
_OPTIONS = {  # of what a remedy names, where the command line has one
    "min_cohort": "--min-cohort",
    "min_corrupt": "--min-corrupt",
    "max_epsilon": "--max-epsilon",
    "max_total_epsilon": "--max-total-epsilon",
    "units": "--unit",
    "require": "--without-noise",
    "repeat_without_noise": "--repeat-without-noise",
    "partner_keys": "--trust-partner",
    "data_id": "--data-id",
    "max_download_bytes": "--max-download-mb",
    "max_memory_bytes": "--max-memory-mb",
}


class ProtectedUnit(enum.StrEnum):
    example = "example"
    device = "device"
    person = "person"
    document = "document"


BaseModel = Annotated[
    str | None,
    typer.Option(
        help="The base model to train, whatever the task calls it: a folder, smollm2, tiny or "
        "a hub id. Its weights must be the task's."
    ),
]
AllowedModels = Annotated[
    list[str] | None,
    typer.Option(
        help="A name that a task may give its base model; it is fetched by that name. "
        "Repeatable. Without this and --model, tasks that train a model are refused."
    ),
]
MinCohort = Annotated[int, number("Refuse sums of fewer devices.", low=2, high=10_000)]
MinCorrupt = Annotated[
    int | None,
    number(
        "Refuse tasks that assume fewer devices that work with the aggregator; default: a "
        "tenth of the cohort, at least 1. 0: admit all.",
        low=0,
    ),
]
MaxEpsilon = Annotated[float, number("Refuse tasks that may cost more, unamplified.", low=0)]
MaxTotalEpsilon = Annotated[float, number("Refuse to spend more over all tasks.", low=0)]
Units = Annotated[
    list[ProtectedUnit] | None,
    typer.Option(
        help="Whose cost the limits are for in every task with noise; repeatable. person or "
        "document: all examples of this device that name one under unit; tasks that do not "
        "protect it as one cost it too much. Default: example."
    ),
]
WithoutNoise = Annotated[
    bool, typer.Option("--without-noise", help="Also join tasks that add no noise at all.")
]
RepeatWithoutNoise = Annotated[
    bool,
    typer.Option(
        "--repeat-without-noise",
        help="Where a task adds no noise to the sum: give a second vector from one model too. "
        "Two sums over cohorts that overlap may then show what this device sent.",
    ),
]
TrustPartners = Annotated[
    list[str] | None,
    typer.Option(
        help="Key of another partner, hex, whose devices may be in a cohort with this one; "
        "repeatable. Without it only devices of the bundle's own partner may.",
    ),
]
MaxDownload = Annotated[int, number("Refuse tasks whose model file may be larger.", low=1)]
MaxMemory = Annotated[
    int | None, number("Refuse tasks whose training may take more memory.", low=1)
]
PeriodDays = Annotated[
    int, number("What the limits per period count: so many days back.", low=1, high=366)
]
PeriodTraffic = Annotated[
    int | None, number("Send and receive at most so much in a period.", low=1)
]
PeriodMinutes = Annotated[float | None, number("Train for at most so long in a period.", above=0)]
PeriodEpsilon = Annotated[
    float | None, number("Spend at most so much in a period, over all tasks.", above=0)
]
Witnesses = Annotated[
    list[str] | None,
    typer.Option(help="Verifier key of a witness of the ledger, or a file with it; repeatable."),
]
MinWitnesses = Annotated[
    int | None,
    number("Witnesses that must have cosigned every checkpoint; default: all.", low=1),
]


def policy_of(
    bundle: Path,
    *,
    model: str | None,
    allow_model: Sequence[str] | None,
    min_cohort: int,
    min_corrupt: int | None,
    max_epsilon: float,
    max_total_epsilon: float,
    unit: Sequence[ProtectedUnit] | None,
    without_noise: bool,
    repeat_without_noise: bool,
    trust_partner: Sequence[str] | None,
    max_download_mb: int,
    max_memory_mb: int | None,
    period_days: int,
    period_mb: int | None,
    period_minutes: float | None,
    period_epsilon: float | None,
    witness: Sequence[str] | None,
    min_witnesses: int | None,
) -> PrivacyPolicy:
    """The policy that the options of these names are."""
    from client_sdk import PrivacyPolicy
    from client_sdk.enrolment import load_bundle

    allowed = frozenset(allow_model or ())
    others = frozenset(map(parse_partner_key, trust_partner or ()))
    own = {load_bundle(bundle).certificate.partner_key} if others else set[bytes]()
    return PrivacyPolicy(
        min_cohort=min_cohort,
        min_corrupt=min_corrupt,
        max_epsilon=max_epsilon,
        max_total_epsilon=max_total_epsilon,
        units=frozenset(each.value for each in unit) if unit else PrivacyPolicy().units,
        require=None if without_noise else PrivacyPolicy().require,
        repeat_without_noise=repeat_without_noise,
        partner_keys=(others | own) or None,
        allowed_models=allowed if allowed or model is None else None,
        max_download_bytes=max_download_mb << 20,
        max_memory_bytes=None if max_memory_mb is None else max_memory_mb << 20,
        per_period=_per_period(period_days, period_mb, period_minutes, period_epsilon),
        witnesses=frozenset(witness_keys(witness or ())),
        min_witnesses=min_witnesses,
    )


def _per_period(
    days: int, mb: int | None, minutes: float | None, epsilon: float | None
) -> PeriodLimits | None:
    """None where nothing is limited."""
    from client_sdk import PeriodLimits

    if mb is None and minutes is None and epsilon is None:
        return None
    return PeriodLimits(
        period_s=days * 86_400.0,
        max_bytes=None if mb is None else mb << 20,
        max_training_s=None if minutes is None else minutes * 60.0,
        max_epsilon=epsilon,
    )


def in_options(refusal: PolicyRefusal) -> PolicyRefusal | CommandError:
    """A refusal whose way out is an option of this command."""
    if refusal.reason != "model-not-allowed":
        named = re.findall(r"\w+", refusal.remedy or "")
        options = [option for field, option in _OPTIONS.items() if field in named]
        if refusal.reason in _PERIOD_OPTIONS:
            options = [_PERIOD_OPTIONS[refusal.reason]]
        if options:
            refusal.remedy = f"{refusal.remedy} Here that is {', '.join(options)}."
        return refusal
    return CommandError(
        refusal.reason,
        "The task names a base model that this command line does not allow.",
        expected=refusal.expected,
        found=refusal.found,
        remedy="Give your own copy with --model, or allow this name with --allow-model.",
    )
