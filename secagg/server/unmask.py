"""Step 5 at the aggregator: verify shares, reconstruct, and say which masks are left.

A share that does not match the hash its dealer signed was changed by its holder, who had checked
it: the holder is named and the share ignored. Good shares that reconstruct to something else than
the commitment, or than the advertised mask key, were dealt so: the dealer is named, and since its
masks are in the sum the cohort cannot be opened.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace

from secagg import keys, masks, ring, sharing
from secagg.context import (
    KIND_PAIR_SEED,
    MASK_KEY,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_NOISE_SEED,
    SHARE_OF_SELF_SEED,
    masking_set_digest,
    noise_seed_commitment,
    opened_levels,
    pair_seed,
    pair_sign,
    seal_info,
    self_seed_commitment,
    share_hash,
)
from secagg.errors import RemoteProtocolError
from secagg.messages import Unmask
from secagg.opening import NoiseSeed, OpeningPlan
from secagg.secret import Secret
from secagg.server.events import ServerConfig
from secagg.server.states import Facts, Unmasking


def secrets_due(
    facts: Facts, masking_set: Sequence[int], survivors: Sequence[int], owners: Sequence[int]
) -> list[tuple[int, int]]:
    """(owner, kind) of the secrets of these owners in S that the opening needs, in order."""
    alive = frozenset(survivors)
    levels = opened_levels(facts.removable_drops, len(masking_set), len(survivors))
    of_survivor = (SHARE_OF_SELF_SEED, *(SHARE_OF_NOISE_SEED + level for level in levels))
    return [
        (owner, kind)
        for owner in owners
        for kind in (of_survivor if owner in alive else (SHARE_OF_MASK_SECRET,))
    ]


def take_unmask(state: Unmasking, index: int, message: Unmask) -> Unmasking:
    """Keep a survivor's shares that match their signed hashes.

    Raises:
        RemoteProtocolError: the answer is not one share of each secret that the opening needs of
            each neighbour in S.
    """
    facts = state.facts
    holder = facts.identity(index)
    masking = frozenset(state.masking_set)
    owners = [owner for owner in facts.graph.neighbours(index) if owner in masking]
    expected = secrets_due(facts, state.masking_set, state.survivors, owners)
    found = [(share.owner, share.kind) for share in message.shares]
    if index not in state.survivors or found != expected:
        raise RemoteProtocolError(
            "unmask-shares",
            "The answer is not one share of each secret that is opened per neighbour in S.",
            culprit=holder,
            expected=expected[:8],
            found=found[:8],
        )
    good: dict[tuple[int, int], Secret] = {}
    lacking = dict(state.lacking)
    for revealed in message.shares:
        owner = facts.identity(revealed.owner)
        wanted = state.dealt[revealed.owner].to[index].share_hashes[revealed.kind]
        found_hash = share_hash(revealed.kind, facts.ctx, owner, holder, revealed.share)
        if not hmac.compare_digest(found_hash, wanted):
            continue
        secret = (revealed.owner, revealed.kind)
        good[secret] = Secret(revealed.share)
        if secret in lacking:
            lacking[secret] -= 1
            if not lacking[secret]:
                del lacking[secret]
    culprits = state.culprits
    if len(good) < len(message.shares) and holder not in culprits:
        culprits = (*culprits, holder)
    return replace(state, shares={**state.shares, index: good}, lacking=lacking, culprits=culprits)


def make_plan(config: ServerConfig, state: Unmasking) -> OpeningPlan:
    """Reconstruct every secret that the sum needs and list the masks to take off.

    Raises:
        RemoteProtocolError: ``dealer-self-seed``, ``dealer-mask-secret``, ``dealer-noise-seed``,
            ``seal-invalid`` or ``shares-inconsistent``, naming the device whose deals cannot be
            right.
    """
    facts = state.facts
    salt = masking_set_digest(facts.ctx, state.masking_set)
    terms: list[masks.MaskTerm] = []
    noise: list[NoiseSeed] = []
    for (owner, kind), secret in _reconstruct(state).items():
        if kind == SHARE_OF_SELF_SEED:
            _check_self_seed(state, owner, secret)
            terms.append(masks.MaskTerm(masks.mask_key(secret, salt), -1))
        elif kind == SHARE_OF_MASK_SECRET:
            for survivor, seed in _pair_seeds(state, owner, secret).items():
                mask = masks.MaskTerm(masks.mask_key(seed, salt), pair_sign(survivor, owner))
                terms.append(mask.negated())
        else:
            level = kind - SHARE_OF_NOISE_SEED
            _check_noise_seed(state, owner, level, secret)
            noise.append(NoiseSeed(owner, level, secret))
    encoding = config.manifest.encoding
    length = ring.payload_length(config.manifest.data_length, encoding.slice_length)
    return OpeningPlan(encoding.ring_bits, length, tuple(terms), tuple(noise))


def _reconstruct(state: Unmasking) -> dict[tuple[int, int], Secret]:
    """(owner, kind) -> secret, from exactly t shares each.

    The holders are the t lowest, so on the complete graph most owners have the same share set;
    all secrets with the same share set share its Lagrange coefficients.
    """
    held: dict[tuple[int, int], dict[int, Secret]] = {}
    for holder in sorted(state.shares):
        for secret, share in state.shares[holder].items():
            shares = held.setdefault(secret, {})
            if len(shares) < state.facts.threshold:
                shares[holder] = share
    coefficients: dict[tuple[int, ...], dict[int, int]] = {}
    secrets: dict[tuple[int, int], Secret] = {}
    due = secrets_due(state.facts, state.masking_set, state.survivors, state.masking_set)
    for owner, kind in due:
        shares = held[owner, kind]
        holders = tuple(shares)
        if holders not in coefficients:
            coefficients[holders] = sharing.lagrange_at_zero(holders)
        revealed = {holder: share.reveal() for holder, share in shares.items()}
        try:
            secrets[owner, kind] = sharing.join(revealed, coefficients[holders])
        except RemoteProtocolError as error:
            error.culprit = state.facts.identity(owner)
            raise
    return secrets


def _check_noise_seed(state: Unmasking, owner: int, level: int, seed: Secret) -> None:
    identity = state.facts.identity(owner)
    committed = state.dealt[owner].noise_commitments[level]
    if not hmac.compare_digest(noise_seed_commitment(identity, level, seed), committed):
        raise RemoteProtocolError(
            "dealer-noise-seed",
            f"The shares that device {owner} dealt do not give the noise seed it committed to.",
            culprit=identity,
            expected=committed.hex(),
        )


def _check_self_seed(state: Unmasking, owner: int, seed: Secret) -> None:
    identity = state.facts.identity(owner)
    committed = state.facts.adverts[owner].self_seed_commitment
    if not hmac.compare_digest(self_seed_commitment(identity, seed), committed):
        raise RemoteProtocolError(
            "dealer-self-seed",
            f"The shares that device {owner} dealt do not give the seed it committed to.",
            culprit=identity,
        )


def _pair_seeds(state: Unmasking, owner: int, mask_secret: Secret) -> dict[int, Secret]:
    """survivor -> seed of the mask it has in common with the dropped ``owner``."""
    facts = state.facts
    identity = facts.identity(owner)
    private = keys.kem_private_key(mask_secret, MASK_KEY)
    public = keys.kem_public_key(mask_secret, MASK_KEY)
    if not hmac.compare_digest(public, facts.adverts[owner].mask_key):
        raise RemoteProtocolError(
            "dealer-mask-secret",
            f"The shares that device {owner} dealt do not give the secret of its mask key.",
            culprit=identity,
        )
    survivors = frozenset(state.survivors)
    seeds: dict[int, Secret] = {}
    for survivor in facts.graph.neighbours(owner):
        if survivor not in survivors:
            continue
        peer = facts.identity(survivor)
        if facts.graph.sealer(owner, survivor) == owner:
            seeds[survivor] = pair_seed(mask_secret, facts.ctx, identity, peer)
            continue
        info = seal_info(facts.ctx, peer, identity, KIND_PAIR_SEED)
        sealed = state.dealt[survivor].to[owner].sealed_pair_seed
        try:
            seed = keys.hpke_open(private, info, sealed)  # 32 bytes: its sealed size was checked
        except RemoteProtocolError as error:
            error.culprit = peer
            raise
        seeds[survivor] = Secret(seed)
    return seeds
