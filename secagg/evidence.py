"""What shows that a device broke the rules, in bytes that somebody else can check.

Evidence is self-contained: manifest, roster and models give ``ctx`` again, and what convicts the
device is its own signature under that ctx. An honest device signs deals once per ctx, whose shares
lie on one polynomial through the secret that it committed to; so t of them that give another
secret convict it, whoever shows them (docs/protocol.md, "Who lies"). The verifier believes nobody:
not the aggregator, which gathers evidence, and not the neighbours, whose shares are in it.

========================  ======================================================  ============
kind                      what convicts                                           who can check
========================  ======================================================  ============
``dealer-self-seed``      t shares that match the dealer's signed hashes and give  anybody
``dealer-mask-secret``    another secret than its advert or its signed deals
``dealer-noise-seed``     commit to
``deal-signature``        signed deals, one of which is not signed by the dealer  anybody
``seal-invalid``          a signed deal whose seal does not open under the        who has that
                          recipient's mask key                                    mask secret
``unmask-share``          a signed answer and the hash that the dealer signed     who delivered
                                                                                  the deals
========================  ======================================================  ============

The last two prove nothing to others. The mask secret is another device's and is not handed on. And
a dealer that is in league with the aggregator could sign a second list of hashes for a holder to
fail; only who delivered the first knows which one it was.
"""

from __future__ import annotations

import hmac
from itertools import pairwise
from typing import NamedTuple

import msgspec

from secagg import sealing, sharing
from secagg.context import (
    KIND_PAIR_SEED,
    MASK_KEY,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_NOISE_SEED,
    SHARE_OF_SELF_SEED,
    advert_digest,
    context,
    noise_seed_commitment,
    roster_digest,
    seal_info,
    self_seed_commitment,
    share_hash,
)
from secagg.errors import RemoteProtocolError, SecaggError
from secagg.graph import parameters
from secagg.graph.harary import Graph
from secagg.limits import COHORT_MAX, EVIDENCE_BYTES_MAX, NOISE_LEVELS_MAX
from secagg.manifest import Manifest, decode_manifest, manifest_digest
from secagg.messages import (
    AdmittedModel,
    Advert,
    Deal,
    Deals,
    Message,
    RosterEntry,
    Unmask,
    peek,
    verify,
)
from secagg.ranges import Count, Index, IndexOrNone, KindOrNone
from secagg.secret import Secret

EVIDENCE_VERSION = 1
DEALER_SELF_SEED = "dealer-self-seed"
DEALER_MASK_SECRET = "dealer-mask-secret"  # noqa: S105  a kind
DEALER_NOISE_SEED = "dealer-noise-seed"
DEAL_SIGNATURE = "deal-signature"
SEAL_INVALID = "seal-invalid"
UNMASK_SHARE = "unmask-share"
TRANSFERABLE = frozenset((DEALER_SELF_SEED, DEALER_MASK_SECRET, DEALER_NOISE_SEED, DEAL_SIGNATURE))
KINDS = TRANSFERABLE | {SEAL_INVALID, UNMASK_SHARE}


class Evidence(Message, frozen=True):
    """Evidence against the device at roster index ``device``.

    ``manifest`` is as signed, ``entries`` is the whole roster in order. ``message``: what the
    accused signed, its :class:`Deals` or, for ``unmask-share``, its :class:`Unmask`. ``other``:
    roster index of the deal's recipient or of the share's owner, -1 without one, with its signed
    advert (``seal-invalid``) or its signed deals (``unmask-share``) in ``other_message``.
    ``secret``: kind of the share, -1 without one. ``shares``: (holder, share) of the accused
    dealer's own secret, sorted by holder.
    """

    kind: str
    manifest: bytes
    cohort: bytes
    attempt: Count
    models: tuple[AdmittedModel, ...]
    entries: tuple[RosterEntry, ...]
    device: Index
    advert: bytes
    message: bytes
    other: IndexOrNone = -1
    other_message: bytes = b""
    secret: KindOrNone = -1
    shares: tuple[tuple[Index, bytes], ...] = ()


class Verdict(NamedTuple):
    """``identity``: Ed25519 key of the convicted device, certified by ``partner``.
    ``ctx``: of the exchange. ``transferable``: whether anybody can check the evidence."""

    identity: bytes
    kind: str
    partner: bytes
    task: str
    cohort: bytes
    ctx: bytes
    transferable: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Evidence, strict=True)


def encode_evidence(evidence: Evidence) -> bytes:
    """Version byte, then MessagePack."""
    return bytes((EVIDENCE_VERSION,)) + _encoder.encode(evidence)


def decode_evidence(data: bytes) -> Evidence:
    """
    Raises:
        RemoteProtocolError: ``evidence-malformed``.
    """
    if len(data) > EVIDENCE_BYTES_MAX or data[:1] != bytes((EVIDENCE_VERSION,)):
        raise _malformed("is too large or of another version")
    try:
        return _decoder.decode(data[1:])
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise _malformed(f"does not parse: {type(error).__name__}") from error


def kind_of_dealer(secret: int) -> str:
    """The kind of a dealer whose shares of this kind do not give what it committed to."""
    if secret == SHARE_OF_SELF_SEED:
        return DEALER_SELF_SEED
    return DEALER_MASK_SECRET if secret == SHARE_OF_MASK_SECRET else DEALER_NOISE_SEED


def is_committed(
    secret_kind: int,
    secret: Secret,
    identity: bytes,
    advert: Advert,
    noise_commitments: tuple[bytes, ...],
) -> bool:
    """Whether a joined secret is the one that its dealer committed to."""
    if secret_kind == SHARE_OF_SELF_SEED:
        found, wanted = self_seed_commitment(identity, secret), advert.self_seed_commitment
    elif secret_kind == SHARE_OF_MASK_SECRET:
        found, wanted = sealing.kem_public_key(secret, MASK_KEY), advert.mask_key
    else:
        level = secret_kind - SHARE_OF_NOISE_SEED
        found = noise_seed_commitment(identity, level, secret)
        wanted = noise_commitments[level]
    return hmac.compare_digest(found, wanted)


def verify_evidence(
    data: bytes, *, delivered: bool = False, mask_secret: Secret | None = None
) -> Verdict:
    """Check evidence; returns whom it convicts, and of what.

    Args:
        delivered: the caller delivered the deals in it itself, as the aggregator of that cohort
            did; needed for ``unmask-share``.
        mask_secret: of the deal's recipient; needed for ``seal-invalid``.

    Raises:
        RemoteProtocolError: ``evidence-malformed``, ``evidence-not-bound`` (what it holds is not
            of one exchange), ``evidence-innocent`` (what it holds convicts nobody) or
            ``evidence-not-transferable`` (only the cohort's aggregator could tell).
    """
    evidence = decode_evidence(data)
    try:
        exchange = _exchange(evidence)
        if evidence.kind in (DEALER_SELF_SEED, DEALER_MASK_SECRET, DEALER_NOISE_SEED):
            _check_dealer(exchange)
        elif evidence.kind == DEAL_SIGNATURE:
            _check_signature(exchange)
        elif evidence.kind == SEAL_INVALID:
            _check_seal(exchange, mask_secret)
        elif evidence.kind == UNMASK_SHARE:
            _check_answer(exchange, delivered)
        else:
            raise _malformed("is of an unknown kind")
    except RemoteProtocolError as error:
        if error.reason.startswith("evidence-"):
            raise
        raise _not_bound(str(error)) from error
    except SecaggError as error:  # sizes without a graph, a manifest that does not parse
        raise _malformed(str(error)) from error
    return Verdict(
        identity=exchange.identity,
        kind=evidence.kind,
        partner=exchange.advert.certificate.partner_key,
        task=exchange.manifest.task,
        cohort=evidence.cohort,
        ctx=exchange.ctx,
        transferable=evidence.kind in TRANSFERABLE,
    )


class _Exchange(NamedTuple):
    evidence: Evidence
    manifest: Manifest
    ctx: bytes
    graph: Graph
    threshold: int
    identity: bytes
    advert: Advert


def _exchange(evidence: Evidence) -> _Exchange:
    """The exchange that the evidence is of, with the accused in it."""
    entries = evidence.entries
    identities = [entry.identity_key for entry in entries]
    if not 0 <= evidence.device < len(entries) <= COHORT_MAX:
        raise _malformed("accuses a device outside its roster")
    if any(later <= earlier for earlier, later in pairwise(identities)):
        raise _malformed("has a roster out of order")
    if not all(0 <= entry.model < 1 << 32 for entry in entries):
        raise _malformed("has a roster with impossible models")
    if not 0 <= evidence.attempt < 1 << 32 or any(
        not 0 <= model.version < 1 << 63 for model in evidence.models
    ):
        raise _malformed("has impossible numbers")
    manifest = decode_manifest(evidence.manifest)
    roster = roster_digest(entries)
    graph = Graph(len(entries), manifest.cohort.degree, roster)
    ctx = context(
        task=manifest.task,
        cohort=evidence.cohort,
        attempt=evidence.attempt,
        manifest_digest=manifest_digest(evidence.manifest),
        models=evidence.models,
        roster=roster,
    )
    threshold = parameters.threshold_on(graph, manifest.cohort)
    advert = _advert_of(evidence, evidence.device, evidence.advert)
    return _Exchange(evidence, manifest, ctx, graph, threshold, identities[evidence.device], advert)


def _advert_of(evidence: Evidence, index: int, signed: bytes) -> Advert:
    entry = evidence.entries[index]
    if advert_digest(signed) != entry.advert_digest:
        raise _not_bound("the advert is not the one in the roster")
    advert, _ = verify(signed, b"", Advert, signer=entry.identity_key)
    return advert


def _deals_of(exchange: _Exchange, index: int, signed: bytes) -> tuple[Deals, tuple[int, ...]]:
    """The signed deals of a device, and to whom they go, in order."""
    signer = exchange.evidence.entries[index].identity_key
    deals, _ = verify(signed, exchange.ctx, Deals, signer=signer)
    recipients = exchange.graph.neighbours(index)
    if deals.ctx != exchange.ctx or len(deals.deals) != len(recipients):
        raise _not_bound("the deals are not those of this exchange")
    return deals, recipients


def _deal(exchange: _Exchange, index: int, signed_deals: bytes, recipient: int) -> Deal:
    """One deal of a device, as it signed the whole list."""
    deals, recipients = _deals_of(exchange, index, signed_deals)
    if recipient not in recipients:
        raise _not_bound("the deal's recipient is not a neighbour")
    deal, _ = peek(deals.deals[recipients.index(recipient)], Deal)
    if (deal.ctx, deal.sender, deal.recipient) != (exchange.ctx, index, recipient):
        raise _not_bound("the deal is not from its dealer to its recipient")
    return deal


def _check_dealer(exchange: _Exchange) -> None:
    """t shares that match the signed hashes give another secret than the committed one."""
    evidence = exchange.evidence
    kind, levels = evidence.secret, len(exchange.manifest.removable_drops)
    if not 0 <= kind < SHARE_OF_NOISE_SEED + min(levels, NOISE_LEVELS_MAX):
        raise _malformed("is about no secret of this exchange")
    if kind_of_dealer(kind) != evidence.kind:
        raise _malformed("is about another secret than its kind says")
    deals, recipients = _deals_of(exchange, evidence.device, evidence.message)
    holders = tuple(holder for holder, _ in evidence.shares)
    if len(holders) != exchange.threshold or any(b <= a for a, b in pairwise(holders)):
        raise _not_bound("the shares are not exactly as many as the threshold, in order")
    revealed = dict(evidence.shares)
    for holder, share in evidence.shares:
        if holder not in recipients:
            raise _not_bound("a share is not of a neighbour")
        deal, _ = peek(deals.deals[recipients.index(holder)], Deal)
        found = share_hash(
            kind, exchange.ctx, exchange.identity, evidence.entries[holder].identity_key, share
        )
        addressed = (deal.sender, deal.recipient) == (evidence.device, holder)
        if (
            not addressed
            or kind >= len(deal.share_hashes)
            or not hmac.compare_digest(found, deal.share_hashes[kind])
        ):
            raise _not_bound("a share does not match the hash that the dealer signed")
    if kind >= SHARE_OF_NOISE_SEED and len(deals.noise_commitments) != levels:
        raise _not_bound("the deals do not commit to every noise seed")
    try:
        secret = sharing.join(revealed, sharing.lagrange_at_zero(holders))
    except RemoteProtocolError:
        return  # no secret at all, so not the committed one
    if is_committed(kind, secret, exchange.identity, exchange.advert, deals.noise_commitments):
        raise _innocent("the shares give the secret that the dealer committed to")


def _check_signature(exchange: _Exchange) -> None:
    """A list that the dealer signed holds a deal that it did not sign."""
    evidence = exchange.evidence
    deals, recipients = _deals_of(exchange, evidence.device, evidence.message)
    if evidence.other not in recipients:
        raise _not_bound("the deal's recipient is not a neighbour")
    signed = deals.deals[recipients.index(evidence.other)]
    try:
        verify(signed, exchange.ctx, Deal, signer=exchange.identity)
    except RemoteProtocolError:
        return
    raise _innocent("the deal is signed by its dealer")


def _check_seal(exchange: _Exchange, mask_secret: Secret | None) -> None:
    """The pair seed that the dealer sealed does not open under the recipient's mask key."""
    evidence, other = exchange.evidence, exchange.evidence.other
    deal = _deal(exchange, evidence.device, evidence.message, other)
    if exchange.graph.sealer(evidence.device, other) != evidence.device:
        raise _not_bound("the accused does not seal this edge")
    if mask_secret is None:
        raise _not_transferable("The seal opens or not under a secret of its recipient.")
    recipient = _advert_of(evidence, other, evidence.other_message)
    public = sealing.kem_public_key(mask_secret, MASK_KEY)
    if not hmac.compare_digest(public, recipient.mask_key):
        raise _not_bound("the mask secret is not the recipient's")
    info = seal_info(
        exchange.ctx, exchange.identity, evidence.entries[other].identity_key, KIND_PAIR_SEED
    )
    try:
        sealing.hpke_open(
            sealing.kem_private_key(mask_secret, MASK_KEY), info, deal.sealed_pair_seed
        )
    except RemoteProtocolError:
        return
    raise _innocent("the seal opens")


def _check_answer(exchange: _Exchange, delivered: bool) -> None:
    """A share in the holder's signed answer is not the one whose hash the dealer signed."""
    evidence, other = exchange.evidence, exchange.evidence.other
    answer, _ = verify(evidence.message, exchange.ctx, Unmask, signer=exchange.identity)
    if (answer.ctx, answer.index) != (exchange.ctx, evidence.device):
        raise _not_bound("the answer is for another exchange or place")
    if not 0 <= other < len(evidence.entries):
        raise _malformed("names an owner outside its roster")
    deal = _deal(exchange, other, evidence.other_message, evidence.device)
    shares = [s.share for s in answer.shares if (s.owner, s.kind) == (other, evidence.secret)]
    if len(shares) != 1 or not 0 <= evidence.secret < len(deal.share_hashes):
        raise _not_bound("the answer has no such share")
    if not delivered:
        raise _not_transferable("The dealer could have signed other hashes for the holder.")
    found = share_hash(
        evidence.secret,
        exchange.ctx,
        evidence.entries[other].identity_key,
        exchange.identity,
        shares[0],
    )
    if hmac.compare_digest(found, deal.share_hashes[evidence.secret]):
        raise _innocent("the share matches its hash")


def _malformed(what: str) -> RemoteProtocolError:
    return RemoteProtocolError("evidence-malformed", f"The evidence {what}.")


def _not_bound(why: str) -> RemoteProtocolError:
    return RemoteProtocolError("evidence-not-bound", f"The evidence does not hold together: {why}.")


def _innocent(why: str) -> RemoteProtocolError:
    return RemoteProtocolError("evidence-innocent", f"The evidence convicts nobody: {why}.")


def _not_transferable(why: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        "evidence-not-transferable",
        f"{why} Only the aggregator of that cohort could tell.",
        remedy="Ask the operator; this is its word, not a proof.",
    )
