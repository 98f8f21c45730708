"""The phases of one device in one exchange, each with exactly what it still needs.

Secrets leave as early as they can: the mask secret and the channel secret once the inbox is
open, the seeds once the vector is masked, the shares once they are revealed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

from secagg.client.events import Failed, Finished
from secagg.graph.harary import Graph
from secagg.messages import AdmittedModel
from secagg.secret import Secret


@dataclass(frozen=True)
class Exchange:
    """What the accepted roster fixed; nothing in it is secret. States hold it as ``session``, its
    name in snapshots.

    ``accepted``: message kind number -> digest of the message of that kind that was obeyed.
    ``degree``, ``order_seed``: of the graph. ``staleness``: versions between this device's model
    and the newest of the admitted ``models``. ``model_places``: of each entry's model among them
    (empty where there is one model, and in what an earlier version journalled).
    """

    ctx: bytes
    cohort: bytes
    index: int
    identity_keys: tuple[bytes, ...]
    neighbours: tuple[int, ...]
    threshold: int
    accepted: dict[int, bytes]
    degree: int = 0
    order_seed: bytes = b""
    models: tuple[AdmittedModel, ...] = ()
    staleness: int = 0
    model_places: tuple[int, ...] = ()

    @property
    def graph(self) -> Graph:
        return Graph(len(self.identity_keys), self.degree, self.order_seed)


@dataclass(frozen=True)
class HeldShares:
    """Shares that one neighbour dealt to this device, 33 bytes each; ``of_noise`` by level."""

    of_mask_secret: Secret
    of_self_seed: Secret
    of_noise: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class Advertised:
    """Step 1 done: the advert is out, no roster was accepted."""

    phase: ClassVar[str] = "advertised"

    advert: bytes
    model_digest: bytes
    expires_at: int  # Unix seconds
    mask_secret: Secret
    self_seed: Secret
    channel_secret: Secret


@dataclass(frozen=True)
class Shared:
    """Step 2 done: the deals are out. ``noise_seeds``: of the removable parts, by level."""

    phase: ClassVar[str] = "shared"

    session: Exchange
    mask_secret: Secret
    self_seed: Secret
    channel_secret: Secret
    noise_seeds: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class Checked:
    """Step 2b done: what the accepted deals held, by neighbour."""

    phase: ClassVar[str] = "checked"

    session: Exchange
    self_seed: Secret
    pair_seeds: dict[int, Secret]
    shares: dict[int, HeldShares]
    noise_seeds: tuple[Secret, ...] = ()


@dataclass(frozen=True)
class AwaitingVector:
    """S is fixed; the driver was asked for the vector."""

    phase: ClassVar[str] = "awaiting-vector"

    session: Exchange
    masking_set: tuple[int, ...]
    self_seed: Secret
    pair_seeds: dict[int, Secret]  # of neighbours in S
    shares: dict[int, HeldShares]


@dataclass(frozen=True)
class Uploading:
    """Step 3 done: the masked vector is fixed. It is the driver's to keep until U is known."""

    phase: ClassVar[str] = "uploading"

    session: Exchange
    masking_set: tuple[int, ...]
    shares: dict[int, HeldShares]


@dataclass(frozen=True)
class Confirmed:
    """Step 4 done: this U was confirmed, and no other will be."""

    phase: ClassVar[str] = "confirmed"

    session: Exchange
    masking_set: tuple[int, ...]
    survivors: tuple[int, ...]
    shares: dict[int, HeldShares]


@dataclass(frozen=True)
class Unmasked:
    """Step 5 done: the shares are revealed and forgotten."""

    phase: ClassVar[str] = "unmasked"

    session: Exchange


Joined = Shared | Checked | AwaitingVector | Uploading | Confirmed | Unmasked
State = Advertised | Joined | Finished | Failed

_J = TypeVar("_J", Shared, Checked, AwaitingVector, Uploading, Confirmed, Unmasked)


def accept(session: Exchange, kind: int, message_digest: bytes) -> Exchange:
    """The exchange after obeying a message of this kind."""
    return replace(session, accepted={**session.accepted, kind: message_digest})
