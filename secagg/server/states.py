"""The phases of one cohort at the aggregator, each with exactly what it still needs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, TypedDict, TypeVar

from secagg.graph.harary import Graph
from secagg.messages import AdmittedModel, Advert, RosterEntry
from secagg.secret import Secret
from secagg.unmasking import UnmaskingPlan


@dataclass(frozen=True)
class Facts:
    """What the roster and the manifest fixed. ``adverts`` are in roster order; ``partners`` are
    those that the roster's entries point into."""

    cohort: bytes
    attempt: int
    ctx: bytes
    roster: tuple[RosterEntry, ...]
    adverts: tuple[Advert, ...]
    models: tuple[AdmittedModel, ...]
    graph: Graph
    threshold: int
    removable_drops: tuple[int, ...]
    partners: tuple[bytes, ...]

    @property
    def size(self) -> int:
        return len(self.roster)

    def identity(self, index: int) -> bytes:
        return self.roster[index].identity_key


@dataclass(frozen=True)
class Finding:
    """What shows that the device at roster index ``device`` broke the rules; material for
    :mod:`secagg.evidence`, whose kinds ``kind`` names.

    ``other``: roster index of the deal's recipient, or of the share's owner; -1: none.
    ``secret``: kind of the share. ``shares``: t revealed shares of the device's own secret, as
    (holder, share). ``mask_secret``: of ``other``, to which a seal does not open.
    """

    device: int
    kind: str
    other: int = -1
    secret: int = -1
    shares: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    mask_secret: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class _Phase:
    """Common to all phases.

    ``accepted``: message kind number -> device -> digest of the message that was obeyed.
    ``culprits``: identity keys of devices that provably broke the rules.
    ``findings``: what shows it, where there is something to show.
    ``gone``: devices that were left out and told so, or left by their own word.
    ``excluded``: devices that the aggregator bars, so that S will not hold them.
    ``pseudonyms``: by roster index, the names by which the ledger lists devices that checked.
    """

    phase: ClassVar[str]

    facts: Facts
    accepted: dict[int, dict[int, bytes]] = field(repr=False)
    culprits: tuple[bytes, ...] = ()
    findings: tuple[Finding, ...] = ()
    gone: frozenset[int] = frozenset()
    excluded: frozenset[int] = frozenset()
    pseudonyms: dict[int, bytes] = field(default_factory=dict, repr=False)
    deadline_s: float = math.inf  # Unix seconds

    @property
    def roster(self) -> tuple[RosterEntry, ...]:
        return self.facts.roster

    @property
    def ctx(self) -> bytes:
        return self.facts.ctx


PhaseT = TypeVar("PhaseT", bound=_Phase)


class Common(TypedDict):
    """What a phase hands on to the next one, whichever that is."""

    facts: Facts
    accepted: dict[int, dict[int, bytes]]
    culprits: tuple[bytes, ...]
    findings: tuple[Finding, ...]
    gone: frozenset[int]
    excluded: frozenset[int]
    pseudonyms: dict[int, bytes]


@dataclass(frozen=True)
class DealFacts:
    """What the aggregator keeps of a deal after it delivered it. ``share_hashes``: by kind."""

    digest: bytes
    share_hashes: tuple[bytes, ...]
    sealed_pair_seed: bytes = field(repr=False)


@dataclass(frozen=True)
class Dealing:
    """What a device dealt: to each recipient, and its commitments to its noise seeds."""

    to: dict[int, DealFacts] = field(repr=False)
    noise_commitments: tuple[bytes, ...]


Dealt = dict[int, Dealing]  # by dealer


@dataclass(frozen=True, kw_only=True)
class Sharing(_Phase):
    """Waiting for deals. ``signed_deals``: dealer -> recipient -> the signed deal as sent."""

    phase: ClassVar[str] = "sharing"

    dealt: Dealt = field(repr=False)
    signed_deals: dict[int, dict[int, bytes]] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Checking(_Phase):
    """Waiting for the check results of the ``dealers``.

    ``accusations``: accuser -> dealers whose sealed contents it could not use.
    ``guilty``: dealers whose signed deal is bad for everyone to see -> its recipient.
    """

    phase: ClassVar[str] = "checking"

    dealt: Dealt = field(repr=False)
    dealers: tuple[int, ...]
    answered: frozenset[int] = frozenset()
    accusations: dict[int, frozenset[int]]
    guilty: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Masking(_Phase):
    """S is fixed; waiting for masked vectors."""

    phase: ClassVar[str] = "masking"

    dealt: Dealt = field(repr=False)
    masking_set: tuple[int, ...]
    announced: frozenset[int] = frozenset()
    added: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Confirming(_Phase):
    """U is fixed; waiting for the survivors' confirmations (signed, as sent)."""

    phase: ClassVar[str] = "confirming"

    dealt: Dealt = field(repr=False)
    masking_set: tuple[int, ...]
    survivors: tuple[int, ...]
    confirmations: dict[int, bytes] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Unmasking(_Phase):
    """Waiting for shares.

    ``shares``: holder -> (owner, kind) -> verified share. ``lacking``: (owner, kind) -> how many
    more shares of that secret are needed; what is complete is not in it.
    """

    phase: ClassVar[str] = "unmasking"

    dealt: Dealt = field(repr=False)
    masking_set: tuple[int, ...]
    survivors: tuple[int, ...]
    shares: dict[int, dict[tuple[int, int], Secret]] = field(repr=False)
    lacking: dict[tuple[int, int], int] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class UnmaskingSum(_Phase):
    """All secrets that the sum needs are there; the driver removes the masks. ``phase`` keeps the
    word under which it is stored."""

    phase: ClassVar[str] = "opening"

    masking_set: tuple[int, ...]
    survivors: tuple[int, ...]
    plan: UnmaskingPlan = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Releasing(_Phase):
    """The sum is unmasked and right; the driver makes the release durable."""

    phase: ClassVar[str] = "releasing"

    masking_set: tuple[int, ...]
    survivors: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Released(_Phase):
    """Terminal."""

    phase: ClassVar[str] = "released"

    masking_set: tuple[int, ...]
    survivors: tuple[int, ...]
    release: int
    leaf_index: int


@dataclass(frozen=True, kw_only=True)
class Aborted(_Phase):
    """Terminal: no release.

    ``silent``: devices for which the last phase still waited. ``summed``: those whose vectors are
    in a sum that was refused. ``masking_set``: S; empty if it was never fixed.
    """

    phase: ClassVar[str] = "aborted"

    reason: str
    silent: tuple[int, ...] = ()
    summed: tuple[int, ...] = ()
    masking_set: tuple[int, ...] = ()


Live = Sharing | Checking | Masking | Confirming | Unmasking | UnmaskingSum | Releasing
State = Live | Released | Aborted


def senders_of(state: Live) -> Collection[int]:
    """Roster indices of the devices that have something to say in this phase."""
    match state:
        case Sharing():
            return range(state.facts.size)
        case Checking():
            return state.dealers
        case Masking():
            return state.masking_set
        case Confirming() | Unmasking():
            return state.survivors
    return ()


def masking_set_of(state: State) -> tuple[int, ...]:
    """S, once it is fixed; before that nobody."""
    return () if isinstance(state, Sharing | Checking) else state.masking_set


def survivors_of(state: State) -> tuple[int, ...]:
    """U, once it is fixed; before that, and in a cohort that ended without a release, nobody."""
    if isinstance(state, Sharing | Checking | Masking | Aborted):
        return ()
    return state.survivors
