"""The device's veto on the command line: the options of ``secagg join`` and ``secagg explain``."""

from __future__ import annotations

import enum
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


@dataclass(frozen=True, kw_only=True)
class PolicyOptions:
    """The veto as a command line gives it: each field is the option of its name."""

    model: Annotated[
        str | None,
        typer.Option(
            help="The base model to train, whatever the task calls it: a folder, smollm2, tiny or "
            "a hub id. Its weights must be the task's."
        ),
    ] = None
    allow_model: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that a task may give its base model; it is fetched by that name. "
            "Repeatable. Without this and --model, tasks that train a model are refused."
        ),
    ] = None
    min_cohort: Annotated[int, number("Refuse sums of fewer devices.", low=2, high=10_000)] = 10
    min_corrupt: Annotated[
        int | None,
        number(
            "Refuse tasks that assume fewer devices that work with the aggregator; default: a "
            "tenth of the cohort, at least 1. 0: admit all.",
            low=0,
        ),
    ] = None
    max_epsilon: Annotated[
        float, number("Refuse tasks that may cost more, unamplified.", low=0)
    ] = 8.0
    max_total_epsilon: Annotated[float, number("Refuse to spend more over all tasks.", low=0)] = (
        16.0
    )
    unit: Annotated[
        list[ProtectedUnit] | None,
        typer.Option(
            help="Whose cost the limits are for in every task with noise; repeatable. person or "
            "document: all examples of this device that name one under unit; tasks that do not "
            "protect it as one cost it too much. Default: example."
        ),
    ] = None
    without_noise: Annotated[
        bool, typer.Option("--without-noise", help="Also join tasks that add no noise at all.")
    ] = False
    repeat_without_noise: Annotated[
        bool,
        typer.Option(
            "--repeat-without-noise",
            help="Where a task adds no noise to the sum: give a second vector from one model too. "
            "Two sums over cohorts that overlap may then show what this device sent.",
        ),
    ] = False
    trust_partner: Annotated[
        list[str] | None,
        typer.Option(
            help="Key of another partner, hex, whose devices may be in a cohort with this one; "
            "repeatable. Without it only devices of the bundle's own partner may.",
        ),
    ] = None
    max_download_mb: Annotated[
        int, number("Refuse tasks whose model file may be larger.", low=1)
    ] = 512
    max_memory_mb: Annotated[
        int | None, number("Refuse tasks whose training may take more memory.", low=1)
    ] = None
    period_days: Annotated[
        int, number("What the limits per period count: so many days back.", low=1, high=366)
    ] = 30
    period_mb: Annotated[
        int | None, number("Send and receive at most so much in a period.", low=1)
    ] = None
    period_minutes: Annotated[
        float | None, number("Train for at most so long in a period.", above=0)
    ] = None
    period_epsilon: Annotated[
        float | None, number("Spend at most so much in a period, over all tasks.", above=0)
    ] = None
    witness: Annotated[
        list[str] | None,
        typer.Option(
            help="Verifier key of a witness of the ledger, or a file with it; repeatable."
        ),
    ] = None
    min_witnesses: Annotated[
        int | None,
        number("Witnesses that must have cosigned every checkpoint; default: all.", low=1),
    ] = None

    def policy(self, bundle: Path) -> PrivacyPolicy:
        """What the options say, for the device of a bundle.

        Raises:
            SecaggError: of a key or a file that an option names.
        """
        from client_sdk import PrivacyPolicy
        from client_sdk.enrolment import load_bundle

        allowed = frozenset(self.allow_model or ())
        others = frozenset(map(parse_partner_key, self.trust_partner or ()))
        own = {load_bundle(bundle).certificate.partner_key} if others else set[bytes]()
        default = PrivacyPolicy()
        return PrivacyPolicy(
            min_cohort=self.min_cohort,
            min_corrupt=self.min_corrupt,
            max_epsilon=self.max_epsilon,
            max_total_epsilon=self.max_total_epsilon,
            units=frozenset(each.value for each in self.unit) if self.unit else default.units,
            require=None if self.without_noise else default.require,
            repeat_without_noise=self.repeat_without_noise,
            partner_keys=(others | own) or None,
            allowed_models=allowed if allowed or self.model is None else None,
            max_download_bytes=self.max_download_mb << 20,
            max_memory_bytes=None if self.max_memory_mb is None else self.max_memory_mb << 20,
            per_period=self._per_period(),
            witnesses=frozenset(witness_keys(self.witness or ())),
            min_witnesses=self.min_witnesses,
        )

    def _per_period(self) -> PeriodLimits | None:
        """None where nothing is limited."""
        from client_sdk import PeriodLimits

        mb, minutes, epsilon = self.period_mb, self.period_minutes, self.period_epsilon
        if mb is None and minutes is None and epsilon is None:
            return None
        return PeriodLimits(
            period_s=self.period_days * 86_400.0,
            max_bytes=None if mb is None else mb << 20,
            max_training_s=None if minutes is None else minutes * 60.0,
            max_epsilon=epsilon,
        )


def with_policy(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``options`` is given by the options of :class:`PolicyOptions`."""
    names = [each.name for each in fields(PolicyOptions)]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = PolicyOptions(**{name: given.pop(name) for name in names})
        command(**given, options=options)

    own = inspect.signature(command, eval_str=True)
    expanded: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        if parameter.name == "options":
            expanded += inspect.signature(PolicyOptions, eval_str=True).parameters.values()
        else:
            expanded.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    run.__signature__ = own.replace(parameters=expanded)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in expanded}
    return run


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
