"""What both machines compute alike: the context of an exchange and what is bound to it.

``ctx`` is the hash of everything that the members of a cohort must agree on. Everything that is
signed, sealed or derived from step 2 on is bound to it, so devices that were shown different
rosters, models or manifests can neither read nor cancel each other's masks.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Literal

from secagg.hashing import derive, digest, encode_parts
from secagg.limits import PROTOCOL_VERSION, SHARE_BYTES, SUITE
from secagg.messages import AdmittedModel, RosterEntry
from secagg.secret import Secret

KIND_PAIR_SEED = b"pair seed"
KIND_SHARES = b"shares"
LEFT_OUT = "left-out"  # Abort.reason to one device while the cohort goes on
SHARE_OF_SELF_SEED, SHARE_OF_MASK_SECRET, SHARE_OF_NOISE_SEED = 0, 1, 2  # + level of the noise
_SHARE_LABELS = {SHARE_OF_SELF_SEED: "self share", SHARE_OF_MASK_SECRET: "mask share"}
MASK_KEY, CHANNEL_KEY = "mask-key", "channel-key"  # labels of secagg.sealing.kem_private_key


def sealed_shares_bytes(noise_levels: int) -> int:
    """Size of what a deal seals: shares of the self seed, the mask secret and each noise seed."""
    return (2 + noise_levels) * SHARE_BYTES


def _integers(values: Sequence[int]) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


def advert_digest(signed_advert: bytes) -> bytes:
    """Digest of a signed advert as sent; names the session and the roster entry. 32 bytes."""
    return digest("advert", signed_advert)


def self_seed_commitment(identity_key: bytes, self_seed: Secret) -> bytes:
    """Commitment to ``self_seed`` (it hides, since the seed has 256 bits); 32 bytes."""
    return digest("self seed", identity_key, self_seed.reveal())


def noise_seed_commitment(identity_key: bytes, level: int, seed: Secret) -> bytes:
    """Commitment to the seed of one removable part of a device's noise; 32 bytes."""
    return digest(f"noise seed {level}", identity_key, seed.reveal())


def roster_digest(entries: Sequence[RosterEntry]) -> bytes:
    """Digest of the whole roster in order; 32 bytes."""
    parts: list[bytes] = []
    for entry in entries:
        parts += (entry.identity_key, entry.advert_digest, entry.model.to_bytes(8, "little"))
    return digest("roster", *parts)


def models_digest(models: Sequence[AdmittedModel]) -> bytes:
    """Digest of the admitted models in order; 32 bytes."""
    parts: list[bytes] = []
    for model in models:
        parts += (model.version.to_bytes(8, "little"), model.digest)
    return digest("models", *parts)


def context(
    *,
    task: str,
    cohort: bytes,
    attempt: int,
    manifest_digest: bytes,
    models: Sequence[AdmittedModel],
    roster: bytes,
) -> bytes:
    """``ctx`` of one cohort's exchange; 32 bytes. ``roster``: its digest."""
    return digest(
        "context",
        _integers([PROTOCOL_VERSION]),
        SUITE.encode("ascii"),
        task.encode(),
        cohort,
        _integers([attempt]),
        manifest_digest,
        models_digest(models),
        roster,
    )


def masking_set_digest(ctx: bytes, members: Sequence[int]) -> bytes:
    """T = hash of (ctx, S): salts every mask key, so different S do not cancel; 32 bytes."""
    return digest("masking set", ctx, _integers(members))


def survivor_set_digest(ctx: bytes, masking_digest: bytes, members: Sequence[int]) -> bytes:
    """Digest of (ctx, S, U) that survivors confirm; 32 bytes."""
    return digest("survivor set", ctx, masking_digest, _integers(members))


def seal_info(ctx: bytes, sender_key: bytes, recipient_key: bytes, kind: bytes) -> bytes:
    """HPKE ``info``: who sealed what to whom in which exchange."""
    return encode_parts("seal", ctx, sender_key, recipient_key, kind)


def pair_seed(mask_secret: Secret, ctx: bytes, sealer_key: bytes, other_key: bytes) -> Secret:
    """Seed of the mask that two neighbours share, derived by the edge's sealer; 32 bytes."""
    return Secret(derive(mask_secret.reveal(), "pair seed", ctx, sealer_key, other_key))


def pseudonym(identity: Secret, ctx: bytes) -> bytes:
    """The name by which the ledger lists a device in one cohort; 32 bytes.

    HMAC-SHA256 over ctx under a key of its own, derived from the seed of the device's identity:
    nobody else can make it or link two of them, and the device finds its own again.
    """
    return hmac.digest(derive(identity.reveal(), "pseudonym"), ctx, "sha256")


def share_hash(kind: int, ctx: bytes, dealer_key: bytes, holder_key: bytes, share: bytes) -> bytes:
    """Hash of one share, labelled by its kind, so that a lying share is named; 32 bytes."""
    label = _SHARE_LABELS.get(kind) or f"noise share {kind - SHARE_OF_NOISE_SEED}"
    return digest(label, ctx, dealer_key, holder_key, share)


def removed_levels(
    removable_drops: Sequence[int], masking_set_size: int, survivors: int
) -> tuple[int, ...]:
    """Levels (from 0) of the noise that these survivors do not need, so that it is taken off.

    Level k covers drop-outs beyond t_k (t_0 = 0) up to t_{k+1} = ``removable_drops[k]``.
    """
    lost = masking_set_size - survivors
    needed_beyond = (0, *removable_drops)
    return tuple(level for level in range(len(removable_drops)) if lost <= needed_beyond[level])


def pair_sign(own: int, other: int) -> Literal[1, -1]:
    """+1 or -1: the sign with which device ``own`` adds the mask it shares with ``other``."""
    return 1 if own < other else -1
