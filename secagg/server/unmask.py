"""Step 5 at the aggregator: verify shares, reconstruct, and say which masks are left.

A share that does not match the hash its dealer signed was changed by its holder, who had checked
it: the holder is named and the share ignored. Good shares that reconstruct to something else than
the commitment, or than the advertised mask key, were dealt so: the dealer is named, and since its
masks are in the sum the cohort cannot be unmasked.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace

from secagg import masks, ring, sealing, sharing
from secagg.context import (
    KIND_PAIR_SEED,
    MASK_KEY,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_NOISE_SEED,
    SHARE_OF_SELF_SEED,
    masking_set_digest,
    pair_seed,
    pair_sign,
    removed_levels,
    seal_info,
    share_hash,
)
from secagg.errors import RemoteProtocolError
from secagg.evidence import SEAL_INVALID, UNMASK_SHARE, is_committed, kind_of_dealer
from secagg.messages import Unmask
from secagg.secret import Secret
from secagg.server.events import ServerConfig
from secagg.server.states import Facts, Finding, Unmasking
from secagg.unmasking import NoiseSeed, UnmaskingPlan


def secrets_due(
    facts: Facts, masking_set: Sequence[int], survivors: Sequence[int], owners: Sequence[int]
) -> list[tuple[int, int]]:
    """(owner, kind) of the secrets of these owners in S that unmasking needs, in order."""
    alive = frozenset(survivors)
    levels = removed_levels(facts.removable_drops, len(masking_set), len(survivors))
    of_survivor = (SHARE_OF_SELF_SEED, *(SHARE_OF_NOISE_SEED + level for level in levels))
    return [
        (owner, kind)
        for owner in owners
        for kind in (of_survivor if owner in alive else (SHARE_OF_MASK_SECRET,))
    ]


def take_unmask(state: Unmasking, index: int, message: Unmask) -> Unmasking:
    """Keep a survivor's shares that match their signed hashes.

    Raises:
        RemoteProtocolError: the answer is not one share of each secret that unmasking needs of
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
            "The answer is not one share of each secret that is revealed per neighbour in S.",
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
    state = replace(state, shares={**state.shares, index: good}, lacking=lacking)
    changed = [(share.owner, share.kind) for share in message.shares]
    changed = [secret for secret in changed if secret not in good]
    if not changed:
        return state
    return replace(
        state,
        culprits=tuple(dict.fromkeys((*state.culprits, holder))),
        findings=(*state.findings, Finding(index, UNMASK_SHARE, *changed[0])),
    )


class Convicted(RemoteProtocolError):
    """Dealers whose deals cannot be right; ``findings`` names every one of them."""

    def __init__(self, facts: Facts, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        first = self.findings[0]
        super().__init__(
            first.kind,
            f"What device {first.device} dealt cannot be right.",
            culprit=facts.identity(first.device),
        )


def make_plan(config: ServerConfig, state: Unmasking) -> UnmaskingPlan:
    """Reconstruct every secret that the sum needs and list the masks to take off.

    All liars are looked for, not the first alone: two of them cost the others one release.

    Raises:
        Convicted: ``dealer-self-seed``, ``dealer-mask-secret``, ``dealer-noise-seed`` or
            ``seal-invalid``.
    """
    facts = state.facts
    salt = masking_set_digest(facts.ctx, state.masking_set)
    terms: list[masks.MaskTerm] = []
    noise: list[NoiseSeed] = []
    findings: list[Finding] = []
    for (owner, kind), (secret, shares) in _reconstruct(state).items():
        if secret is None or not is_committed(
            kind,
            secret,
            facts.identity(owner),
            facts.adverts[owner],
            state.dealt[owner].noise_commitments,
        ):
            findings.append(Finding(owner, kind_of_dealer(kind), secret=kind, shares=shares))
        elif kind == SHARE_OF_SELF_SEED:
            terms.append(masks.MaskTerm(masks.mask_key(secret, salt), -1))
        elif kind == SHARE_OF_MASK_SECRET:
            seeds, bad = _pair_seeds(state, owner, secret)
            findings += bad
            for survivor, seed in seeds.items():
                mask = masks.MaskTerm(masks.mask_key(seed, salt), pair_sign(survivor, owner))
                terms.append(mask.negated())
        else:
            noise.append(NoiseSeed(owner, kind - SHARE_OF_NOISE_SEED, secret))
    if findings:
        raise Convicted(facts, findings)
    encoding = config.manifest.encoding
    length = ring.payload_length(config.manifest.data_length, encoding.slice_length)
    return UnmaskingPlan(encoding.ring_bits, length, tuple(terms), tuple(noise))


_Shares = tuple[tuple[int, bytes], ...]


def _reconstruct(state: Unmasking) -> dict[tuple[int, int], tuple[Secret | None, _Shares]]:
    """(owner, kind) -> secret and the shares that it was joined from, exactly t each; None where
    they join to no secret.

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
    secrets: dict[tuple[int, int], tuple[Secret | None, _Shares]] = {}
    due = secrets_due(state.facts, state.masking_set, state.survivors, state.masking_set)
    for owner, kind in due:
        shares = held[owner, kind]
        holders = tuple(shares)
        if holders not in coefficients:
            coefficients[holders] = sharing.lagrange_at_zero(holders)
        revealed = {holder: share.reveal() for holder, share in shares.items()}
        joined: Secret | None
        try:
            joined = sharing.join(revealed, coefficients[holders])
        except RemoteProtocolError:
            joined = None
        secrets[owner, kind] = joined, tuple(sorted(revealed.items()))
    return secrets


def _pair_seeds(
    state: Unmasking, owner: int, mask_secret: Secret
) -> tuple[dict[int, Secret], list[Finding]]:
    """survivor -> seed of the mask it has in common with the dropped ``owner``; and the survivors
    whose seal does not open."""
    facts = state.facts
    identity = facts.identity(owner)
    private = sealing.kem_private_key(mask_secret, MASK_KEY)
    survivors = frozenset(state.survivors)
    seeds: dict[int, Secret] = {}
    bad: list[Finding] = []
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
            seed = sealing.hpke_open(private, info, sealed)  # 32 bytes: its sealed size was checked
        except RemoteProtocolError:
            bad.append(Finding(survivor, SEAL_INVALID, owner, mask_secret=mask_secret))
        else:
            seeds[survivor] = Secret(seed)
    return seeds, bad
