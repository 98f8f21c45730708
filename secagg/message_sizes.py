"""Most bytes of each message of a round: the largest that a manifest admits, encoded.

Of a round in which everybody keeps the protocol, whoever drops out. A refusal is smaller than the
deals in whose place it comes. A complaint is not in it: it sends the deals that it is about back.
"""

from __future__ import annotations

from secagg.context import sealed_shares_bytes
from secagg.graph.harary import neighbour_count
from secagg.limits import (
    COMPLETE_GRAPH_MAX,
    DIGEST_BYTES,
    IDENTITY_KEY_BYTES,
    KEM_PUBLIC_KEY_BYTES,
    SEAL_OVERHEAD_BYTES,
    SEED_BYTES,
    SHARE_BYTES,
    SIGNATURE_BYTES,
)
from secagg.manifest import Manifest
from secagg.messages import (
    AdmittedModel,
    Advert,
    Certificate,
    Confirmation,
    Confirmations,
    Deal,
    Deals,
    Inbox,
    MaskedInput,
    MaskingSet,
    Message,
    Ready,
    Receipt,
    RevealedShare,
    Roster,
    RosterEntry,
    SurvivorSet,
    Unmask,
    signed_size,
)
from secagg.ranges import EXACT_MAX, INT32_MAX

UP = (Advert, Deals, Ready, MaskedInput, Confirmation, Unmask)
DOWN = (Roster, Inbox, MaskingSet, SurvivorSet, Confirmations, Receipt)
_DIGEST, _KEY, _SIGNATURE = bytes(DIGEST_BYTES), bytes(IDENTITY_KEY_BYTES), bytes(SIGNATURE_BYTES)


def message_sizes(manifest: Manifest) -> dict[type[Message], int]:
    """Most bytes of each message that one device sends (``UP``) and gets (``DOWN``), signed.

    Args:
        manifest: sound; lists are as long as its largest cohort.
    """
    size, levels = manifest.cohort.size_max, len(manifest.removable_drops)
    last, everybody = size - 1, tuple(range(size))  # a larger index takes more bytes
    neighbours = _neighbours_max(manifest)
    deals = _deals(last, neighbours, levels)
    advert = _advert(manifest)
    confirmation = Confirmation(_DIGEST, last, _DIGEST, _DIGEST)
    share = (RevealedShare(last, 1 + levels, bytes(SHARE_BYTES)),)
    largest: tuple[Message, ...] = (
        advert,
        Deals(_DIGEST, deals, (_DIGEST,) * levels),
        Ready(_DIGEST, last, _DIGEST),
        MaskedInput(_DIGEST, last, _DIGEST, _DIGEST, EXACT_MAX),
        confirmation,
        Unmask(_DIGEST, last, share * (neighbours * (1 + levels))),
        _roster(manifest, neighbours, bytes(signed_size(advert))),
        Inbox(_DIGEST, deals),
        MaskingSet(_DIGEST, everybody),
        SurvivorSet(_DIGEST, everybody),
        Confirmations(_DIGEST, (bytes(signed_size(confirmation)),) * size),
        Receipt(_DIGEST, INT32_MAX, EXACT_MAX),
    )
    return {type(message): signed_size(message) for message in largest}


def _neighbours_max(manifest: Manifest) -> int:
    """Of a device: the largest complete graph may have more than the largest cohort."""
    rules = manifest.cohort
    complete = min(rules.size_max, max(COMPLETE_GRAPH_MAX, rules.degree + 1))
    sizes = (rules.size_max, max(rules.size_min, complete))
    return max(neighbour_count(size, rules.degree) for size in sizes)


def _deals(last: int, neighbours: int, levels: int) -> tuple[bytes, ...]:
    """To or from every neighbour; each end of an edge seals the seed of half of its edges."""
    sealed_shares = bytes(SEAL_OVERHEAD_BYTES + sealed_shares_bytes(levels))
    hashes = (_DIGEST,) * (2 + levels)
    with_seed, without = (
        bytes(signed_size(Deal(_DIGEST, last, last, bytes(seed), sealed_shares, hashes)))
        for seed in (SEAL_OVERHEAD_BYTES + SEED_BYTES, 0)
    )
    sealing = -(-neighbours // 2)
    return (with_seed,) * sealing + (without,) * (neighbours - sealing)


def _advert(manifest: Manifest) -> Advert:
    partners = len(manifest.partner_keys)
    return Advert(
        task=manifest.task,
        manifest_digest=_DIGEST,
        model_version=INT32_MAX,
        model_digest=_DIGEST,
        certificate=Certificate(_KEY, _KEY, EXACT_MAX, _SIGNATURE),
        mask_key=bytes(KEM_PUBLIC_KEY_BYTES),
        channel_key=bytes(KEM_PUBLIC_KEY_BYTES),
        self_seed_commitment=_DIGEST,
        nonce=_DIGEST,
        expires_at=EXACT_MAX,
        trusted=(_KEY,) * (partners if partners > 1 else 0),
    )


def _roster(manifest: Manifest, neighbours: int, advert: bytes) -> Roster:
    rules = manifest.cohort
    size, last = rules.size_max, rules.size_max - 1
    models = max(1, min(rules.versions_back + 1, size // max(1, rules.behind_each_model)))
    partners = min(size, len(manifest.partner_keys))
    entry = RosterEntry(_KEY, _DIGEST, models - 1, partners - 1, EXACT_MAX, _SIGNATURE)
    return Roster(
        task=manifest.task,
        cohort=_DIGEST,
        attempt=INT32_MAX,
        manifest_digest=_DIGEST,
        models=(AdmittedModel(INT32_MAX, _DIGEST),) * models,
        entries=(entry,) * size,
        index=last,
        neighbour_adverts=((last, advert),) * neighbours,
        partners=(_KEY,) * partners,
    )
