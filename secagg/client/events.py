"""What goes into the device's machine and what comes out.

A driver journals (state, effects) before it performs any effect, and after a restart performs the
journalled effects again: so a device repeats the bytes that it sent and never makes a second
version of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from secagg.manifest import Manifest
from secagg.messages import AdmittedModel, Certificate
from secagg.ring import Lanes
from secagg.secret import Secret


@dataclass(frozen=True)
class ClientConfig:
    """What a device knows before a cohort exists.

    Attributes:
        identity: seed of the device's Ed25519 identity key, 32 bytes.
        certificate: the partner's word for that key.
        manifest, manifest_digest: the task as verified by the device.
        survivors_min: the device's own minimum of devices in a sum; it never weakens the
            manifest's.
        partner_keys: Ed25519 keys of partners that the device itself trusts to certify
            neighbours. A neighbour's partner must be here *and* in the manifest.
        revoked: (partner key, identity key) of devices whose certificates their partner ended.
    """

    identity: Secret
    certificate: Certificate
    manifest: Manifest
    manifest_digest: bytes
    survivors_min: int
    partner_keys: frozenset[bytes]
    revoked: frozenset[tuple[bytes, bytes]] = frozenset()


# -- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Received:
    """A signed message of the aggregator arrived. ``now_s``: Unix seconds on the device."""

    message: bytes = field(repr=False)
    now_s: float


@dataclass(frozen=True)
class VectorReady:
    """The answer to :class:`ProvideVector`: the payload in ring lanes, check coordinates
    included (``secagg.ring.with_checks``). It is copied, not changed."""

    vector: Lanes = field(repr=False)


@dataclass(frozen=True)
class Cancel:
    """The device's own side gives up: a local deadline passed, or there is no vector."""

    reason: str
    message: str


Event = Received | VectorReady | Cancel


# -- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send these bytes to the aggregator. An Unmask message contains shares: never log it."""

    message: bytes = field(repr=False)


@dataclass(frozen=True)
class ProvideVector:
    """Debit the device's budget, draw noise for this cohort alone, encode, and answer with
    :class:`VectorReady`.

    ``masking_set_size``: devices that owe a vector. ``noise_seeds``: one per removable part of the
    noise, 32 bytes; the driver draws that part from it and from nothing else, so that it can be
    taken off. ``models``: those that the cohort admits; ``staleness``: versions between this
    device's model and the newest of them.
    """

    ctx: bytes
    masking_set_size: int
    noise_seeds: tuple[Secret, ...] = ()
    models: tuple[AdmittedModel, ...] = ()
    staleness: int = 0


@dataclass(frozen=True)
class Upload:
    """Send ``header`` (a signed MaskedInput), then the ``payload`` (packed masked vector).

    The header fixes the payload's digest, so both are journalled before the first byte leaves.
    """

    header: bytes = field(repr=False)
    payload: bytes = field(repr=False)


@dataclass(frozen=True)
class Finished:
    """The sum with this device in it was released. Terminal state and effect in one."""

    phase: ClassVar[str] = "finished"

    release: int
    leaf_index: int


@dataclass(frozen=True)
class Failed:
    """The exchange ended for this device. Terminal state and effect in one.

    ``culprit``: identity key of who broke the rules, where it can be named.
    """

    phase: ClassVar[str] = "failed"

    reason: str
    message: str
    culprit: bytes | None = None


Effect = Send | ProvideVector | Upload | Finished | Failed
