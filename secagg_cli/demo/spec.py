"""The demo's task: measured presets, sized for this cohort and these drop-outs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from secagg_cli.demo.kills import KillPlan
from secagg_cli.models.describe import describe
from secagg_cli.models.presets import Privacy, adapter_for, period_for, task_terms

if TYPE_CHECKING:
    from dp.contracts import TaskSpec
    from secagg.manifest import AdapterKind, Manifest

TASK = "demo"
MAX_EPSILON = 8.0  # the budget where the settings permit it, unamplified
DELTA = 1e-5

# Seconds from the masking set to the last vector. Every round with drop-outs waits that long for
# the dead, so it is short: on loopback a vector takes milliseconds.
_MASKED_INPUT_S = 8.0
_MASKED_INPUT_TINY_S = 3.0
_STEP_S = 60.0  # the other steps wait only for a device that was killed and comes back
_REPORT_S = 3600.0


@dataclass(frozen=True)
class DemoOptions:
    """The command line. ``device_noise`` 0: no device-level noise. ``folder`` None: a new one.

    ``period`` None: as the rounds have it, see ``presets.period_for``.
    ``adaptive_clip``: it begins at the preset's clip, with the defaults of ``AdaptiveClipSpec``.
    ``form`` of the adapter, ``algorithm`` and ``privacy`` follow from ``--algorithm``; see
    ``secagg_cli.demo.choice``.
    """

    model: str
    clients: int
    rounds: int
    drop: float
    device_noise: float
    folder: Path | None
    privacy: Privacy = "distributed"
    algorithm: str = "fedsgd"
    form: AdapterKind = "ffa-lora"
    adaptive_clip: bool = False
    period: int | None = None


def task_spec(options: DemoOptions, plan: KillPlan, model: Any) -> TaskSpec:
    """The specification that the operator sends; ``model`` is the loaded base model.

    Raises:
        ConfigurationError: the combination is refused by ``dp.contracts``.
    """
    from dp.contracts import AdaptiveClipSpec, BudgetSpec, CohortSpec, DeadlineSpec, TaskSpec
    from dp.contracts.algorithms.registry import algorithm_named

    period = options.period
    if period is None:
        period = period_for(options.privacy, options.form, options.rounds)
    buffered = algorithm_named(options.algorithm).weighs_staleness
    base_model, adapter = describe(
        model, options.model, adapter_for(options.model, options.form, options.clients)
    )
    spec = TaskSpec(
        task=TASK,
        **task_terms(
            options.model,
            options.privacy,
            options.algorithm,
            options.clients,
            options.form,
            period,
        ),
        device_noise_multiplier=options.device_noise,
        adaptive_clip=AdaptiveClipSpec() if options.adaptive_clip else None,
        cohort=CohortSpec(
            size_min=options.clients,
            size_max=options.clients,
            survivors_min=plan.survivors_min,
            corrupt_max=0,
            # what the demo's devices demand of any sum, and so of those behind a model
            model_min=plan.survivors_min if buffered else None,
        ),
        deadlines=DeadlineSpec(
            report_s=_REPORT_S,
            share_s=_STEP_S,
            check_s=_STEP_S,
            masked_input_s=_MASKED_INPUT_TINY_S if options.model == "tiny" else _MASKED_INPUT_S,
            confirm_s=_STEP_S,
            unmask_s=_STEP_S,
        ),
        budget=BudgetSpec(max_epsilon=None, delta=DELTA, releases_max=options.rounds),
        base_model=base_model,
        adapter=adapter,
    )
    return replace(spec, budget=replace(spec.budget, max_epsilon=_budget(spec)))


def device_limit(spec: TaskSpec, promised: float) -> float:
    """What a device must admit: the promised epsilon, and what one example costs where the task
    protects whole devices alone."""
    from dp.accounting.budget import cost_of

    cost = cost_of("example", draft(spec), spec.budget.releases_max)
    return cost if math.isinf(cost) else max(promised, _tenth_up(cost))


def _budget(spec: TaskSpec) -> float | None:
    """``MAX_EPSILON``, or what these settings cost where that is more; None without privacy."""
    from dp.accounting.statements import headline, lines

    cost = headline(lines(draft(spec), spec.budget.releases_max))
    return None if cost is None else max(MAX_EPSILON, _tenth_up(cost))


def _tenth_up(epsilon: float) -> float:
    return math.ceil(epsilon * 10) / 10


def draft(spec: TaskSpec) -> Manifest:
    """The task's manifest, under nobody's keys."""
    import nacl.signing

    from dp.contracts import build_manifest
    from dp.tlog.notes import verifier_key

    key = bytes(nacl.signing.SigningKey(bytes(32)).verify_key)
    return build_manifest(
        spec,
        created_at=0,
        task_key=key,
        ledger_verifier=verifier_key("draft", key),
        partner_keys=(key,),
    )
