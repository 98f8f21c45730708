"""What goes into the aggregator's machine and what comes out.

The machine is deterministic: replaying a cohort's events gives the same state and effects. A
driver commits an event together with its effects in one transaction, then performs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from secagg.manifest import Manifest
from secagg.messages import (
    Complaint,
    Confirmation,
    Deals,
    MaskedInput,
    Ready,
    Refusal,
    Unmask,
)
from secagg.secret import Secret
from secagg.unmasking import UnmaskingPlan


@dataclass(frozen=True)
class ServerConfig:
    """One task. ``task_key``: seed of the Ed25519 key that signs messages, 32 bytes; its public
    half is ``manifest.task_key``."""

    manifest: Manifest
    manifest_digest: bytes
    task_key: Secret


# -- events (``now_s``: Unix seconds) ----------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """A message of the device with this roster index arrived."""

    index: int
    message: bytes = field(repr=False)
    now_s: float


@dataclass(frozen=True)
class VectorAdded:
    """The device's whole vector matched its digest and is durably in the partial sum."""

    index: int
    now_s: float


@dataclass(frozen=True)
class Tick:
    """Time passed. A stale timer does nothing."""

    now_s: float


@dataclass(frozen=True)
class SumUnmasked:
    """The plan was applied to the partial sum and the check coordinates are right."""

    now_s: float


@dataclass(frozen=True)
class SumRefused:
    """The sum cannot be released, e.g. ``check-coordinates`` or ``budget-exhausted``."""

    reason: str
    now_s: float


@dataclass(frozen=True)
class ReleaseCommitted:
    """The release is durable and in the ledger at ``leaf_index``."""

    release: int
    leaf_index: int
    now_s: float


@dataclass(frozen=True)
class Cancel:
    """The aggregator's own side gives the cohort up, e.g. ``task-paused``."""

    reason: str
    now_s: float


@dataclass(frozen=True)
class Exclude:
    """The aggregator bars a device, which was banned or has left after the roster closed.

    The phase ends if it waited for nobody else; not where ``now_s`` is None, as in logs of before.
    """

    index: int
    now_s: float | None = None


DriverEvent = VectorAdded | Tick | SumUnmasked | SumRefused | ReleaseCommitted | Cancel | Exclude
Event = Received | DriverEvent
DeviceMessage = Deals | Refusal | Ready | Complaint | MaskedInput | Confirmation | Unmask


# -- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Deliver:
    """Put a signed message into the mailbox of the device with this roster index.

    ``make`` gives the message's bytes, the same each time. They are made when they are read: the
    rosters of a cohort of thousands do not fit in memory all at once. ``large``: a roster or an
    inbox, which repeats for one device what adverts and deals say already. Nobody needs it once
    the phase has passed in which it is answered.
    """

    __match_args__ = ("index", "message")

    index: int
    make: Callable[[], bytes] = field(repr=False)
    large: bool = False

    @property
    def message(self) -> bytes:
        return self.make()


@dataclass(frozen=True)
class AcceptUpload:
    """Accept the device's vector, if its plain SHA-256 is ``vector_digest``.

    ``size_bytes`` bytes of packed coordinates are due.
    """

    index: int
    vector_digest: bytes
    size_bytes: int


@dataclass(frozen=True)
class Refused:
    """The device with this roster index refuses the roster and is out of the cohort.

    ``reason``: its own word for it. ``entry``: roster index of the device that it objects to; -1:
    none. Nothing of this is proven.
    """

    index: int
    reason: str
    entry: int


@dataclass(frozen=True)
class RemoveMasks:
    """Take off the masks that are left in the partial sum."""

    plan: UnmaskingPlan


@dataclass(frozen=True)
class Wake:
    """Send a :class:`Tick` at this time (Unix seconds), unless something newer is scheduled."""

    at_s: float


@dataclass(frozen=True)
class Ended:
    """The cohort ended: released if ``reason`` is None. ``culprits``: identity keys."""

    reason: str | None
    culprits: tuple[bytes, ...]


Effect = Deliver | AcceptUpload | Refused | RemoveMasks | Wake | Ended
