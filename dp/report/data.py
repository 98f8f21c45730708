"""What a privacy report holds, as plain data: no text of it is made here."""

from __future__ import annotations

import msgspec

from dp.accounting import PrivacyLine
from dp.audit import Finding


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """``derived``: how it follows from others; empty for what the manifest itself fixes."""

    name: str
    value: str
    meaning: str
    derived: str = ""


class ReleaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """One charged cohort. ``epsilons``: the task's cost after it, in the order of its lines.

    ``masking_set``: devices that owed a vector. ``dropped``: of the cohort, not in the
    sum. ``clips``: the bound of each unit in this release, real units, by name.
    ``noise_multiplier``: guaranteed noise over the unit's bound (of examples, else of devices).
    ``measured``: the noise meter's interval, as a multiple of the guaranteed variance.
    ``versions``: of the models that its devices trained from; empty where the record does not
    tell. ``model``: digest of the model that came out of it, hex; empty for a charged cohort.
    """

    number: int
    leaf: int
    at: int
    outcome: str
    cohort_size: int
    masking_set: int
    survivors: int
    dropped: int
    clips: tuple[tuple[str, float], ...]
    noise_multiplier: float | None
    measured: tuple[float, float] | None
    epsilons: tuple[float, ...]
    versions: tuple[int, ...]
    model: str


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
    """What happened at another delta: the epsilon of each line, in the order of the lines."""

    delta: float
    epsilons: tuple[float, ...]


class MembershipRow(msgspec.Struct, frozen=True, kw_only=True):
    """A ban, a removed partner or a revocation list. ``who``: a pseudonym or handle of a device, or
    a partner's key, hex."""

    leaf: int
    at: int
    action: str
    cause: str
    who: str
    task: str
    number: int


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator did with a task, as the ledger has it."""

    leaf: int
    at: int
    action: str
    detail: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One question of the reporting lists. ``known``: whether the ledger can answer it."""

    question: str
    text: str
    lists: tuple[str, ...]
    known: bool


class AnswerGroup(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    answers: tuple[Answer, ...]


class TaskReport(msgspec.Struct, frozen=True, kw_only=True):
    """``planned``: the lines if all releases happen with the fewest survivors. ``replaced``: what
    happened, between neighbours that exchange a record instead. ``amplified``: what must be said
    beside amplified lines; empty without one."""

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
    amplified: str
    profile: tuple[ProfilePoint, ...]
    exposure: tuple[Exposure, ...]
    assumptions: tuple[str, ...]
    unprotected: tuple[str, ...]
    decisions: tuple[Decision, ...]
    answers: tuple[AnswerGroup, ...]
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
    """The whole report. ``software``: what made it, name -> version or digest."""

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
    software: dict[str, str] = {}
    memberships: tuple[MembershipRow, ...] = ()
