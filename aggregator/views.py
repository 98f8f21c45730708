"""What the operator sends and is shown: one definition for store, routes, OpenAPI, pages and
command line.

Keys, digests and cohorts are hex, times are Unix seconds. Members with a default are missing in
rows and services of before; a reader passes over members that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from dp.accounting.statements import PrivacyStatement
from dp.noise_meter import NoiseInterval
from dp.planning.figures import TaskFigures
from dp.planning.task import UnitCost

TaskState = Literal["open", "paused", "finished"]
Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\0]*\Z")]  # that a database takes


class PartnerBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``key``: Ed25519, 32 bytes, base64."""

    name: Text
    key: bytes


class BanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``note``: for the operator; it is not in the ledger."""

    note: Text = ""


class _View(msgspec.Struct, frozen=True, kw_only=True):
    pass


# -- tasks --------------------------------------------------------------------------------------


class ReleaseView(_View, frozen=True, kw_only=True):
    """One charge: a release, or a cohort that was charged without one; then ``fault`` says whose.

    ``cohort_size``: devices of the roster. ``vectors``: devices that sent one, where nothing was
    released. ``lacking``: what came too short, in words. ``sum_norm``: of the sum in real units.
    ``epsilon``: spent by this charge and all before it; None without noise. ``version``: the
    task's after this charge. ``struck``, ``banned``: devices that the cohort cost a strike or a
    ban that stands.
    """

    release: int
    cohort: str
    outcome: Literal["released", "charged"]
    reason: str | None
    fault: str | None = None
    cohort_size: int
    survivors: int
    vectors: int | None = None
    lacking: str | None = None
    dropped: int
    sum_norm: float | None
    metrics: Mapping[str, float | None]
    epsilon: float | None
    privacy: tuple[PrivacyStatement, ...]
    noise: NoiseInterval | None = None
    version: int
    leaf_index: int
    opened_at: float
    released_at: float
    seconds: float
    struck: int = 0
    banned: int = 0


class StepView(_View, frozen=True, kw_only=True):
    """``came`` of the ``due`` devices have come through; both None before the step has begun."""

    step: str
    came: int | None
    due: int | None


class CohortView(_View, frozen=True, kw_only=True):
    """The cohort under way. ``done`` of the ``due`` devices have come through the phase; both None
    while this replica does not serve the cohort yet, which then says nothing of ``steps`` either.
    ``deadline_at``: None where the phase has none. ``stuck``: the phase should have ended long ago.
    ``waits_for``: pseudonyms, in the log of today, of devices that the phase waits for, at most 32.
    ``under_way``: vectors that have begun to come and are not in the sum; None in other phases."""

    cohort: str
    phase: str
    size: int
    opened_at: float
    done: int | None = None
    due: int | None = None
    deadline_at: float | None = None
    stuck: bool = False
    steps: tuple[StepView, ...] = ()
    waits_for: tuple[str, ...] = ()
    under_way: int | None = None


class EndedCohort(_View, frozen=True, kw_only=True):
    """A cohort that ended without a charge."""

    cohort: str
    reason: str | None
    size: int
    ended_at: float | None


class RosterRefusal(_View, frozen=True, kw_only=True):
    """A device that refused a roster; ``target``: because of whom, None for the roster as such.
    The two are kept apart until ``expires_at``."""

    identity: str
    target: str | None
    reason: str
    times: int
    refused_at: float
    expires_at: float


class NotDealingView(_View, frozen=True, kw_only=True):
    """A device that dealt in none of the last ``cohorts`` that took it; each of them waited for it.
    ``device``: its pseudonym in the log of today."""

    device: str
    cohorts: int
    first_at: float
    last_at: float


class TaskRow(_View, frozen=True, kw_only=True):
    """``closed_at``: since when it is closed for good; None: it is not."""

    task: str
    state: TaskState
    version: int
    charges: int
    closed_at: float | None = None


class TaskList(_View, frozen=True, kw_only=True):
    tasks: tuple[TaskRow, ...]


class TaskView(_View, frozen=True, kw_only=True):
    """Everything about one task.

    ``releases``: one entry per charge, in order. ``why_waiting``: what the next cohort lacks, in
    words; None while one is under way. ``refusals``: of rosters, newest first. ``cohort``: the open
    one. ``sums_max``: of ``releases_max`` sums, those that one example can be in (all of them but
    where batches are scheduled). ``aborted``: how many cohorts ended without a charge;
    ``ended_free``: the newest of them. ``not_dealing``: devices that hold every cohort up.
    ``closed_at``: since when the operator lets no more cohort form, for good; None: not closed.
    """

    task: str
    state: TaskState
    algorithm: str
    manifest_digest: str
    version: int
    model_digest: str
    opened_at: float
    created_at: float
    charges: int
    releases_max: int
    sums_max: int = 0
    max_epsilon: float | None
    delta: float
    epsilon: float | None
    privacy: tuple[PrivacyStatement, ...] = ()
    releases: tuple[ReleaseView, ...]
    aborted: int = 0
    ended_free: tuple[EndedCohort, ...] = ()
    waiting: int
    banned: int = 0
    why_waiting: str | None = None
    refusals: tuple[RosterRefusal, ...] = ()
    not_dealing: tuple[NotDealingView, ...] = ()
    cohort: CohortView | None
    closed_at: float | None = None


class TaskCreated(TaskView, frozen=True, kw_only=True):
    """``warnings``: what the operator should know about the task, sentences.

    ``planned``: what its releases will cost each unit. ``drop_outs_max``: of a full cohort, so many
    may vanish; ``corrupt_max``: so many of its devices may work with the aggregator. ``figures``:
    all that follows from its terms.
    """

    warnings: tuple[str, ...]
    planned: tuple[UnitCost, ...] = ()
    drop_outs_max: int = 0
    corrupt_max: int = 0
    figures: TaskFigures | None = None


class TaskPlanned(_View, frozen=True, kw_only=True):
    """What a task would be; nothing was created. As in :class:`TaskCreated`."""

    task: str
    algorithm: str
    releases_max: int
    max_epsilon: float | None
    delta: float
    warnings: tuple[str, ...]
    planned: tuple[UnitCost, ...]
    figures: TaskFigures


class TaskDeleted(_View, frozen=True, kw_only=True):
    task: str


class CohortAborted(_View, frozen=True, kw_only=True):
    """The end of a cohort by its operator. ``phase``: in which it was. ``charge``: ``none``: its
    devices had not been told to send; ``given-back``: they had, nobody had sent, and the task got
    its reservation back; ``charged``: as charge ``release`` of the task, with ``epsilon`` spent by
    it and all before it."""

    task: str
    cohort: str
    phase: str
    size: int
    charge: Literal["none", "given-back", "charged"]
    release: int | None = None
    epsilon: float | None = None


class TokenBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``digest``: SHA-256 of the new token, hex, so that the token itself does not travel.
    ``overlap_s``: for so long the old ones are taken too."""

    digest: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    overlap_s: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 0.0


class TokenRotated(_View, frozen=True, kw_only=True):
    """``old_until``: when the last of the other tokens ends."""

    old_until: float


# -- partners -----------------------------------------------------------------------------------


class PartnerAdded(_View, frozen=True, kw_only=True):
    name: str
    key: bytes


class PartnerView(_View, frozen=True, kw_only=True):
    partner_key: str
    name: str
    added_at: float


class PartnerList(_View, frozen=True, kw_only=True):
    partners: tuple[PartnerView, ...]


class PartnerRemoved(_View, frozen=True, kw_only=True):
    """``tasks``: open tasks that list the partner and go on without it."""

    tasks: tuple[str, ...]


class RevocationsTaken(_View, frozen=True, kw_only=True):
    """A partner's list is in force: its number, how many devices are on it, and its digest."""

    partner: str
    number: int
    devices: int
    digest: str


# -- devices ------------------------------------------------------------------------------------


class BanView(_View, frozen=True, kw_only=True):
    """``partner``, ``task``, ``cohort``: empty where there is none. ``handle``: how the ledger
    names the device. ``transferable``: whether others can check the evidence."""

    device: str
    partner: str
    kind: str
    task: str
    cohort: str
    handle: str
    note: str
    evidence_bytes: int
    transferable: bool
    banned_at: float


class BanMade(BanView, frozen=True, kw_only=True):
    """``seen``: a session or a strike of the device is known, so the key is a device's."""

    seen: bool


class StrikeView(_View, frozen=True, kw_only=True):
    """``score``: the weight of the strikes that still count."""

    device: str
    partner: str
    strikes: int
    score: float
    last_at: float


class NeverDealsView(_View, frozen=True, kw_only=True):
    """``cohorts``: in a row of one task that took the device without its dealing. ``log_name``:
    what logs and pages of today call the device."""

    device: str
    cohorts: int
    log_name: str


class DeviceList(_View, frozen=True, kw_only=True):
    """``strikes``: the most struck first."""

    bans: tuple[BanView, ...]
    strikes: tuple[StrikeView, ...]
    never_deal: tuple[NeverDealsView, ...] = ()
