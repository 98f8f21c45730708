"""What the verification of a ledger found."""

from __future__ import annotations

from typing import Any

import msgspec

from dp.accounting.budget import Total
from dp.accounting.statements import PrivacyStatement, ReleaseFacts, lines
from dp.ledger.forms import Rotation
from dp.ledger.records import (
    Membership,
    ReleaseEntry,
)
from secagg.manifest import Manifest


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is wrong. ``leaf``: index of the record, where there is one."""

    reason: str
    message: str
    leaf: int | None = None


class AuditedRelease(msgspec.Struct, frozen=True, kw_only=True):
    """One charged cohort. ``lines``: recomputed cost of the task up to here.

    ``clip``: in force in this cohort, where the clip adapts and the ledger tells it.
    """

    leaf: int
    entry: ReleaseEntry
    guaranteed_variance: int
    lines: tuple[PrivacyStatement, ...]
    clip: float | None = None


class AuditedTask(msgspec.Struct, frozen=True, kw_only=True):
    leaf: int
    manifest: Manifest
    manifest_digest: bytes
    admissible: bool
    releases: tuple[AuditedRelease, ...]
    policies: tuple[dict[str, Any], ...]

    @property
    def facts(self) -> tuple[ReleaseFacts, ...]:
        return tuple(release.entry.facts(self.manifest) for release in self.releases)

    @property
    def lines(self) -> tuple[PrivacyStatement, ...]:
        """What the task cost in all; empty for a task that was refused."""
        if not self.admissible:
            return ()
        return self.releases[-1].lines if self.releases else lines(self.manifest, 0)


class AuditResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger holds, and what is wrong with it.

    ``epsilon``: the largest total of a unit that a task makes a statement about, unamplified, over
    all tasks: infinite if one of them adds no noise that protects it; None if no task makes one.
    ``totals``: of each unit, at the smallest delta of these tasks; empty before a charge.
    ``witnesses``: asked-for witnesses that cosigned the checkpoint, and when (Unix seconds).
    ``releases``: sums that were released; ``charged``: all cohorts that cost privacy.
    ``records_read``: ``tree_size``, or 0 where a problem ended the audit before the records, of
    which it then says nothing.
    ``memberships``, ``rotations``: (leaf, record) of bans and of what partners did, and of keys
    that sign beside the first. ``unchecked``: what ``verified`` does not say, each with its reason.
    """

    verified: bool
    tree_size: int
    root: str
    origin: str
    releases: int
    charged: int
    epsilon: float | None
    problems: tuple[Finding, ...]
    tasks: tuple[AuditedTask, ...]
    witnesses: dict[str, int] = {}
    memberships: tuple[tuple[int, Membership], ...] = ()
    rotations: tuple[tuple[int, Rotation], ...] = ()
    unchecked: tuple[Finding, ...] = ()
    totals: tuple[Total, ...] = ()
    records_read: int = 0
