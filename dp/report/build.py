"""From an audited ledger to the report: what each task released, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from dp.accounting.budget import Total
from dp.accounting.statements import headline, lines
from dp.contracts import warnings
from dp.ledger.findings import AuditedRelease, AuditedTask, AuditResult
from dp.ledger.forms import parse_policy
from dp.ledger.records import Membership
from dp.noise.adaptive_clip import first_clip
from dp.noise.grid import examples_factor
from dp.report.answers import answers
from dp.report.data import (
    BudgetRow,
    Combined,
    Decision,
    MembershipRow,
    ProfilePoint,
    ReleaseRow,
    ReportData,
    RotationRow,
    TaskReport,
)
from dp.report.losses import losses
from dp.report.parameters import parameters
from dp.report.reading import FIGURES, READING, RECOMPUTE
from dp.report.totals import together
from dp.report.words import amplified, assumptions, exposure, unprotected
from secagg.manifest import Manifest

_GIVEN_BACK = "charge-given-back"  # the action of its policy record
_PROFILE_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)


def report_data(audit: AuditResult, software: Mapping[str, str] | None = None) -> ReportData:
    """The report of a ledger that was audited; a ledger with problems is reported with them.

    Args:
        software: what makes the report, name -> version or digest; this floor does not know.
    """
    tasks = [task for task in audit.tasks if task.admissible]
    return ReportData(
        origin=audit.origin,
        verified=audit.verified,
        tree_size=audit.tree_size,
        root=audit.root,
        problems=audit.problems,
        tasks=tuple(_task(task) for task in tasks),
        combined=tuple(map(_combined, audit.totals)),
        witnesses=audit.witnesses,
        reading=READING,
        figures=FIGURES,
        recompute=RECOMPUTE,
        software=dict(software or {}),
        memberships=tuple(_membership(leaf, record) for leaf, record in audit.memberships),
        unchecked=audit.unchecked,
        records_read=audit.records_read,
        rotations=tuple(
            RotationRow(leaf=leaf, at=record.at, verifier=record.new_verifier)
            for leaf, record in audit.rotations
        ),
    )


def _membership(leaf: int, record: Membership) -> MembershipRow:
    return MembershipRow(
        leaf=leaf,
        at=record.at,
        action=record.action,
        cause=record.cause,
        who=record.device or record.partner,
        task=record.task,
        number=record.number,
    )


def _task(task: AuditedTask) -> TaskReport:
    manifest = task.manifest
    spent = headline(task.lines)
    limit = manifest.budget.max_epsilon
    model = manifest.base_model.name if manifest.base_model is not None else "no model"
    policies = [_decision(policy) for policy in task.policies]
    releases = tuple(_release(manifest, release) for release in task.releases)
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
        releases=releases,
        lost=losses(releases),
        budget=BudgetRow(
            max_epsilon=limit,
            delta=manifest.budget.delta,
            spent=spent,
            left=None if limit is None or spent is None else max(0.0, limit - spent),
            releases_max=manifest.budget.releases_max,
            releases_left=max(0, manifest.budget.releases_max - len(task.releases)),
        ),
        amplified=amplified(task),
        profile=_profile(task),
        exposure=exposure(manifest),
        assumptions=assumptions(manifest),
        unprotected=unprotected(manifest),
        decisions=tuple(policy for policy in policies if policy.action != _GIVEN_BACK),
        given_back=tuple(policy for policy in policies if policy.action == _GIVEN_BACK),
        answers=answers(task),
        warnings=warnings(manifest),
    )


def _release(manifest: Manifest, release: AuditedRelease) -> ReleaseRow:
    entry = release.entry
    released = entry.outcome == "released"
    recorded = entry.attempt is not None or released  # version 1 wrote 0 without a sum
    return ReleaseRow(
        number=entry.release,
        leaf=release.leaf,
        at=entry.released_at,
        outcome=entry.outcome,
        cohort_size=entry.cohort_size,
        masking_set_size=entry.masking_set_size if recorded else None,
        survivors=entry.survivors,
        dropped=entry.cohort_size - entry.survivors if released else None,
        clips=_clips(manifest, release.clip),
        noise_multiplier=_multiplier(manifest, release.guaranteed_variance),
        measured=_measured(release),
        epsilons=tuple(statement.epsilon for statement in release.lines),
        versions=entry.model_versions,
        model=entry.new_model_digest.hex(),
        fault=entry.fault,
        cause=entry.cause,
    )


def _clips(manifest: Manifest, adapted: float | None) -> tuple[tuple[str, float], ...]:
    """L2 bounds that a release's statements rest on, in real units, by unit.

    ``adapted``: the clip in force, where it adapts; the integer bounds are the manifest's always.
    """
    example, device = manifest.example_privacy, manifest.device_privacy
    found: list[tuple[str, float]] = []
    if example is not None:
        found.append((example.protects, example.clip))
    if device is not None:
        found.append(("device", device.clip))
    factor = 1.0 if adapted is None else adapted / first_clip(manifest)
    return tuple((unit, clip * factor) for unit, clip in found)


def _decision(policy: Mapping[str, Any]) -> Decision:
    found = parse_policy(policy)
    return Decision(leaf=policy["leaf"], at=found.at, action=found.action, detail=found.detail)


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
    """Every statement on what happened, at several deltas; where the headline is finite."""
    points = []
    for delta in _PROFILE_DELTAS:
        budget = msgspec.structs.replace(task.manifest.budget, delta=delta)
        manifest = msgspec.structs.replace(task.manifest, budget=budget)
        found = lines(manifest, task.facts)
        cost = headline(found)
        if cost is not None and math.isfinite(cost):
            epsilons = tuple(statement.epsilon for statement in found)
            points.append(ProfilePoint(delta=delta, epsilons=epsilons))
    return tuple(points)


def _combined(found: Total) -> Combined:
    return Combined(**msgspec.structs.asdict(found), text=together(found))
