"""What a privacy report holds, as plain data: no text of it is made here."""

from __future__ import annotations

import msgspec

from dp.accounting import PrivacyLine
from dp.audit import Finding


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    value: str
    meaning: str


class ReleaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """One charged cohort. ``epsilons``: the task's cost after it, in the order of its lines.

    ``noise_multiplier``: guaranteed noise over the unit's bound (of examples, else of devices).
    ``measured``: the noise meter's interval, as a multiple of the guaranteed variance.
    """

    number: int
    leaf: int
    at: int
    outcome: str
    cohort_size: int
    survivors: int
    dropped: int
    noise_multiplier: float | None
    measured: tuple[float, float] | None
    epsilons: tuple[float, ...]


class BudgetRow(msgspec.Struct, frozen=True, kw_only=True):
    max_epsilon: float | None
    delta: float
    spent: float | None
    left: float | None
    releases_max: int
    releases_left: int


class Exposure(msgspec.Struct, frozen=True, kw_only=True):
    """Who may have seen what."""

    who: str
    what: str


class ProfilePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The headline statement at another delta."""

    delta: float
    epsilon: float


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """``planned``: the lines if all releases happen with the fewest survivors. ``replaced``: what
    happened, between neighbours that exchange a record instead."""

    task: str
    algorithm: str
    model: str
    created_at: int
    manifest_digest: str
    parameters: tuple[Parameter, ...]
    lines: tuple[PrivacyLine, ...]
    planned: tuple[PrivacyLine, ...]
    replaced: tuple[PrivacyLine, ...]
    releases: tuple[ReleaseRow, ...]
    budget: BudgetRow
    profile: tuple[ProfilePoint, ...]
    exposure: tuple[Exposure, ...]
    assumptions: tuple[str, ...]
    unprotected: tuple[str, ...]
    warnings: tuple[str, ...]


class Combined(msgspec.Struct, frozen=True, kw_only=True):
    """What all tasks of the ledger cost together one unit whose data served in every one."""

    unit: str
    epsilon: float
    delta: float


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """How to compute a figure of the report again; ``value``: from what, and how."""

    name: str
    value: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of any such report must know; the lists named above ask for it."""

    name: str
    text: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    origin: str
    verified: bool
    tree_size: int
    root: str
    problems: tuple[Finding, ...]
    tasks: tuple[TaskReport, ...]
    combined: tuple[Combined, ...]
    witnesses: dict[str, int]
    reading: tuple[Statement, ...]
    figures: tuple[Figure, ...]
    recompute: tuple[str, ...]
