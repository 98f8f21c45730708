"""From an audited ledger to the report: what each task released, and what it cost."""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from dp.accounting import epsilon_of, headline, lines, slack_log2
from dp.audit import AuditedRelease, AuditedTask, AuditResult
from dp.budget import Unit, charges_of
from dp.contracts import warnings
from dp.events import Composed, Event
from dp.grid import examples_factor
from dp.report.data import (
    BudgetRow,
    Combined,
    ProfilePoint,
    ReleaseRow,
    ReportData,
    TaskReport,
)
from dp.report.parameters import parameters
from dp.report.reading import FIGURES, READING, RECOMPUTE
from dp.report.words import assumptions, exposure, unprotected
from secagg.manifest import Manifest

_PROFILE_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


def report_data(audit: AuditResult) -> ReportData:
    """The report of a ledger that was audited; a ledger with problems is reported with them."""
    tasks = [task for task in audit.tasks if task.admissible]
    return ReportData(
        origin=audit.origin,
        verified=audit.verified,
        tree_size=audit.tree_size,
        root=audit.root,
        problems=audit.problems,
        tasks=tuple(_task(task) for task in tasks),
        combined=_combined(tasks),
        witnesses=audit.witnesses,
        reading=READING,
        figures=FIGURES,
        recompute=RECOMPUTE,
    )


def _task(task: AuditedTask) -> TaskReport:
    manifest = task.manifest
    spent = headline(task.lines)
    limit = manifest.budget.max_epsilon
    model = manifest.base_model.name if manifest.base_model is not None else "no model"
    return TaskReport(
        task=manifest.task,
        algorithm=manifest.algorithm,
        model=model,
        created_at=manifest.created_at,
        manifest_digest=task.manifest_digest.hex(),
        parameters=parameters(manifest),
        lines=task.lines,
        planned=lines(manifest, manifest.budget.releases_max),
        replaced=lines(manifest, task.facts, replaced=True),
        releases=tuple(
            ReleaseRow(
                number=release.entry.release,
                leaf=release.leaf,
                at=release.entry.released_at,
                outcome=release.entry.outcome,
                cohort_size=release.entry.cohort_size,
                survivors=release.entry.survivors,
                dropped=release.entry.cohort_size - release.entry.survivors,
                noise_multiplier=_multiplier(manifest, release.guaranteed_variance),
                measured=_measured(release),
                epsilons=tuple(line.epsilon for line in release.lines),
            )
            for release in task.releases
        ),
        budget=BudgetRow(
            max_epsilon=limit,
            delta=manifest.budget.delta,
            spent=spent,
            left=None if limit is None or spent is None else max(0.0, limit - spent),
            releases_max=manifest.budget.releases_max,
            releases_left=max(0, manifest.budget.releases_max - len(task.releases)),
        ),
        profile=_profile(task),
        exposure=exposure(manifest),
        assumptions=assumptions(manifest),
        unprotected=unprotected(manifest),
        warnings=warnings(manifest),
    )


def _multiplier(manifest: Manifest, variance: int) -> float | None:
    example = manifest.example_privacy
    if example is not None and example.mode == "local":
        return example.noise_multiplier
    if manifest.noise is None:
        return None
    factor = 1 if example is not None else examples_factor(manifest)
    bound = math.sqrt(sum(segment.clip_units**2 for segment in manifest.segments)) * factor
    return math.sqrt(variance) / bound


def _measured(release: AuditedRelease) -> tuple[float, float] | None:
    ends, guaranteed = release.entry.measured_variance, release.guaranteed_variance
    if ends is None or guaranteed == 0:
        return None
    return ends[0] / guaranteed, ends[1] / guaranteed


def _profile(task: AuditedTask) -> tuple[ProfilePoint, ...]:
    """The headline statement of what happened, at several deltas."""
    points = []
    for delta in _PROFILE_DELTAS:
        budget = msgspec.structs.replace(task.manifest.budget, delta=delta)
        manifest = msgspec.structs.replace(task.manifest, budget=budget)
        cost = headline(lines(manifest, task.facts))
        if cost is not None and math.isfinite(cost):
            points.append(ProfilePoint(delta=delta, epsilon=cost))
    return tuple(points)


def _combined(tasks: list[AuditedTask]) -> tuple[Combined, ...]:
    result = []
    units: tuple[Unit, ...] = ("example", "device")
    for unit in units:
        counts: Counter[Event] = Counter()
        draws, deltas = 1, []
        for task in tasks:
            for facts in task.facts:
                for charge in charges_of(task.manifest, facts):
                    if charge.unit == unit:
                        counts[charge.event()] += charge.count
                        draws += charge.draws
                        deltas.append(task.manifest.budget.delta)
        if counts:
            delta = max(deltas)
            event = Composed(tuple(sorted(counts.items(), key=repr)))
            epsilon = epsilon_of(event, delta, slack_log2(draws))
            result.append(Combined(unit=unit, epsilon=epsilon, delta=delta))
    return tuple(result)
