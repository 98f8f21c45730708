"""Step 5 at the aggregator: verify shares, reconstruct, and say which masks are left.

A share that does not match the hash its dealer signed was changed by its holder, who had checked
it: the holder is named and the share ignored. Good shares that reconstruct to something else than
the commitment, or than the advertised mask key, were dealt so: the dealer is named, and since its
masks are in the sum the cohort cannot be opened.
"""

from __future__ import annotations

import hmac
from dataclasses import replace

from secagg import graph, keys, masks, ring, sharing
from secagg.context import (
    KIND_PAIR_SEED,
    MASK_KEY,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_SELF_SEED,
    masking_set_digest,
    pair_seed,
    pair_sign,
    seal_info,
    self_seed_commitment,
    share_hash,
)
from secagg.errors import RemoteProtocolError
from secagg.messages import Unmask
from secagg.opening import OpeningPlan
from secagg.secret import Secret
from secagg.server.events import ServerConfig
from secagg.server.states import Unmasking


def take_unmask(state: Unmasking, index: int, message: Unmask) -> Unmasking:
    """Keep a survivor's shares that match their signed hashes.

    Raises:
        RemoteProtocolError: the answer is not one share of the right kind per neighbour in S.
    """
    facts = state.facts
    holder = facts.identity(index)
    survivors = frozenset(state.survivors)
    masking = frozenset(state.masking_set)
    expected = [
        (owner, SHARE_OF_SELF_SEED if owner in survivors else SHARE_OF_MASK_SECRET)
        for owner in graph.neighbours(index, facts.size)
        if owner in masking
    ]
    found = [(share.owner, share.kind) for share in message.shares]
    if index not in survivors or found != expected:
        raise RemoteProtocolError(
            "unmask-shares",
            "The answer is not one share of the right kind per neighbour in the masking set.",
            culprit=holder,
            expected=expected[:8],
            found=found[:8],
        )
    shares = dict(state.shares)
    lied = False
    for revealed in message.shares:
        deal = state.dealt[revealed.owner][index]
        wanted = (
            deal.self_share_hash if revealed.kind == SHARE_OF_SELF_SEED else deal.mask_share_hash
        )
        owner = facts.identity(revealed.owner)
        found_hash = share_hash(revealed.kind, facts.ctx, owner, holder, revealed.share)
        if not hmac.compare_digest(found_hash, wanted):
            lied = True
            continue
        shares[revealed.owner] = {
            **shares.get(revealed.owner, {}),
            index: Secret(revealed.share),
        }
    culprits = state.culprits
    if lied and holder not in culprits:
        culprits = (*culprits, holder)
    return replace(state, shares=shares, culprits=culprits)


def enough_shares(state: Unmasking) -> bool:
    """At least t verified shares for every device in S."""
    return all(
        len(state.shares.get(owner, {})) >= state.facts.threshold for owner in state.masking_set
    )


def make_plan(config: ServerConfig, state: Unmasking) -> OpeningPlan:
    """Reconstruct every secret that the sum needs and list the masks to take off.

    Raises:
        RemoteProtocolError: ``dealer-self-seed``, ``dealer-mask-secret``, ``seal-invalid`` or
            ``shares-inconsistent``, naming the device whose deals cannot be right.
    """
    facts = state.facts
    salt = masking_set_digest(facts.ctx, state.masking_set)
    survivors = frozenset(state.survivors)
    terms: list[masks.MaskTerm] = []
    for owner, secret in _reconstruct(state).items():
        if owner in survivors:
            _check_self_seed(state, owner, secret)
            terms.append(masks.MaskTerm(masks.mask_key(secret, salt), -1))
            continue
        for survivor, seed in _pair_seeds(state, owner, secret).items():
            mask = masks.MaskTerm(masks.mask_key(seed, salt), pair_sign(survivor, owner))
            terms.append(mask.negated())
    encoding = config.manifest.encoding
    length = ring.payload_length(config.manifest.data_length, encoding.slice_length)
    return OpeningPlan(encoding.ring_bits, length, tuple(terms))


def _reconstruct(state: Unmasking) -> dict[int, Secret]:
    """owner -> self seed (owner in U) or mask secret, from exactly t shares each.

    The holders are the t lowest, so most owners have the same share set and share its Lagrange
    coefficients.
    """
    coefficients: dict[tuple[int, ...], dict[int, int]] = {}
    secrets: dict[int, Secret] = {}
    for owner in state.masking_set:
        held = state.shares[owner]
        holders = tuple(sorted(held)[: state.facts.threshold])
        if holders not in coefficients:
            coefficients[holders] = sharing.lagrange_at_zero(holders)
        shares = {holder: held[holder].reveal() for holder in holders}
        try:
            secrets[owner] = sharing.join(shares, coefficients[holders])
        except RemoteProtocolError as error:
            error.culprit = state.facts.identity(owner)
            raise
    return secrets


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
    for survivor in graph.neighbours(owner, facts.size):
        if survivor not in survivors:
            continue
        peer = facts.identity(survivor)
        if graph.sealer(owner, survivor) == owner:
            seeds[survivor] = pair_seed(mask_secret, facts.ctx, identity, peer)
            continue
        info = seal_info(facts.ctx, peer, identity, KIND_PAIR_SEED)
        sealed = state.dealt[survivor][owner].sealed_pair_seed
        try:
            seed = keys.hpke_open(private, info, sealed)  # 32 bytes: its sealed size was checked
        except RemoteProtocolError as error:
            error.culprit = peer
            raise
        seeds[survivor] = Secret(seed)
    return seeds
