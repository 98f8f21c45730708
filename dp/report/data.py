"""What a privacy report holds, as plain data: no text of it is made here."""

from __future__ import annotations

import msgspec

from dp.accounting.statements import PrivacyStatement
from dp.ledger.findings import Finding
from dp.ledger.records import Fault


class Parameter(msgspec.Struct, frozen=True, kw_only=True):
    """``derived``: how it follows from others; empty for what the manifest itself fixes."""

    name: str
    value: str
    meaning: str
    derived: str = ""


class ReleaseRow(msgspec.Struct, frozen=True, kw_only=True):
    """One charged cohort. ``epsilons``: the task's cost after it, in the order of its statements.

    ``masking_set_size``: devices that owed a vector; None where a record of version 1 does not say.
    ``dropped``: of the cohort, not in the sum; None without a sum, where the record does not tell
    who had sent. ``clips``: the bound of each unit in this release, real units, by name.
    ``noise_multiplier``: guaranteed noise over the unit's bound (of examples, else of devices).
    ``measured``: the noise meter's interval, as a multiple of the guaranteed variance.
    ``versions``: of the models that its devices trained from; empty where the record does not
    tell. ``model``: digest of the model that came out of it, hex; empty for a charged cohort.
    ``fault``, ``cause``: of a charged cohort, whose fault it was as far as the service can tell
    (``service``, ``devices``, ``unknown``), and its reason; None and empty where not recorded.
    """

    number: int
    leaf: int
    at: int
    outcome: str
    cohort_size: int
    masking_set_size: int | None = msgspec.field(name="masking_set")
    survivors: int
    dropped: int | None
    clips: tuple[tuple[str, float], ...]
    noise_multiplier: float | None
    measured: tuple[float, float] | None
    epsilons: tuple[float, ...]
    versions: tuple[int, ...]
    model: str
    fault: Fault | None = None
    cause: str = ""


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of charged cohorts that are in no sum, and what the ledger tells of why.

    ``devices`` of the ``of`` that could; None where the records do not tell. ``cohorts``: how many,
    where whole cohorts were lost; else 0.
    """

    text: str
    devices: int | None
    of: int
    cohorts: int = 0


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
    """What happened at another delta: the epsilon of each statement, in their order."""

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


class RotationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key that signs the ledger beside the first from record ``leaf`` on."""

    leaf: int
    at: int
    verifier: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator did with a task, or that a charge was given back, as the ledger has it."""

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
    """``planned``: those if all releases happen with the fewest survivors. ``replaced``: what
    happened, between neighbours that exchange a record instead. ``amplified``: what must be said
    beside amplified ones; empty without one. ``given_back``: charges of cohorts that the service
    failed, or may have failed, before anybody had sent. ``lost``: where its devices were lost."""

    task: str
    algorithm: str
    model: str
    created_at: int
    manifest_digest: str
    parameters: tuple[Parameter, ...]
    lines: tuple[PrivacyStatement, ...]
    planned: tuple[PrivacyStatement, ...]
    replaced: tuple[PrivacyStatement, ...]
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
    given_back: tuple[Decision, ...] = ()
    lost: tuple[Lost, ...] = ()


class Combined(msgspec.Struct, frozen=True, kw_only=True):
    """What all tasks of the ledger cost together one unit whose data served in every one.

    The fields are those of ``dp.accounting.budget.Total``; an epsilon that is infinite is null in
    JSON. ``text``: the same for people.
    """

    unit: str
    epsilon: float | None
    delta: float
    unbounded: tuple[str, ...] = ()
    bounded: float | None = None
    stated: float | None = None
    derived: tuple[str, ...] = ()
    stored_before: tuple[str, ...] = ()
    text: str = ""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """How to compute a figure of the report again; ``value``: from what, and how."""

    name: str
    value: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of any such report must know; the lists named above ask for it."""

    name: str
    text: str


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """The whole report. ``software``: what made it, name -> version or digest. ``records_read``:
    ``tree_size``, or 0 where a problem ended the audit before the records."""

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
    unchecked: tuple[Finding, ...] = ()
    rotations: tuple[RotationRow, ...] = ()
    records_read: int = 0
