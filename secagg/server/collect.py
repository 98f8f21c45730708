"""Steps 2 to 4 at the aggregator: what it accepts from a device in each phase."""

from __future__ import annotations

from dataclasses import replace

from secagg import ring
from secagg.context import masking_set_digest, sealed_shares_bytes, survivor_set_digest
from secagg.errors import LocalProtocolError, RemoteProtocolError
from secagg.hashing import digest
from secagg.limits import DIGEST_BYTES, SEAL_OVERHEAD_BYTES, SEED_BYTES
from secagg.messages import (
    Complaint,
    Confirmation,
    Deal,
    Deals,
    MaskedInput,
    Ready,
    Refusal,
    peek,
    verify,
)
from secagg.server.events import AcceptUpload, Refused, ServerConfig
from secagg.server.states import (
    Checking,
    Confirming,
    DealFacts,
    Dealing,
    Facts,
    Masking,
    Sharing,
)


def take_deals(state: Sharing, index: int, message: Deals) -> Sharing:
    """Keep a device's deals for delivery.

    The message is signed as a whole, so the signatures of the deals in it are left to their
    recipients; a recipient that finds one invalid sends it back as proof against its dealer.
    """
    facts = state.facts
    if index in state.gone:
        raise RemoteProtocolError(
            "roster-refused",
            "The device refused this roster before.",
            culprit=facts.identity(index),
        )
    recipients = facts.graph.neighbours(index)
    if len(message.deals) != len(recipients):
        raise RemoteProtocolError(
            "deals-count",
            "A device deals once to each of its neighbours.",
            culprit=facts.identity(index),
            expected=len(recipients),
            found=len(message.deals),
        )
    sizes = [len(commitment) for commitment in message.noise_commitments]
    if sizes != [DIGEST_BYTES] * len(facts.removable_drops):
        raise RemoteProtocolError(
            "deals-commitments",
            "A device commits once to the seed of each removable part of its noise.",
            culprit=facts.identity(index),
            expected=[DIGEST_BYTES] * len(facts.removable_drops),
            found=sizes[:8],
        )
    kept: dict[int, DealFacts] = {}
    for recipient, signed in zip(recipients, message.deals, strict=True):
        kept[recipient] = _deal_facts(facts, index, recipient, signed)
    return replace(
        state,
        dealt={**state.dealt, index: Dealing(kept, message.noise_commitments)},
        signed_deals={
            **state.signed_deals,
            index: dict(zip(recipients, message.deals, strict=True)),
        },
    )


def _deal_facts(facts: Facts, dealer: int, recipient: int, signed: bytes) -> DealFacts:
    deal, envelope = peek(signed, Deal)
    culprit = facts.identity(dealer)
    found = (envelope.signer, deal.ctx, deal.sender, deal.recipient)
    if found != (culprit, facts.ctx, dealer, recipient):
        raise RemoteProtocolError(
            "deal-address",
            "A deal is not from its sender to its place in the list.",
            culprit=culprit,
            expected=(dealer, recipient),
            found=(deal.sender, deal.recipient),
        )
    seals = facts.graph.sealer(dealer, recipient) == dealer
    levels = len(facts.removable_drops)
    sizes = tuple(map(len, (deal.sealed_pair_seed, deal.sealed_shares, *deal.share_hashes)))
    expected = (
        SEAL_OVERHEAD_BYTES + SEED_BYTES if seals else 0,
        SEAL_OVERHEAD_BYTES + sealed_shares_bytes(levels),
        *(DIGEST_BYTES for _ in range(2 + levels)),
    )
    if sizes != expected:
        raise RemoteProtocolError(
            "deal-size",
            "Seals or hashes of a deal have wrong sizes.",
            culprit=culprit,
            expected=expected,
            found=sizes,
        )
    return DealFacts(
        digest=digest("deal", signed),
        share_hashes=deal.share_hashes,
        sealed_pair_seed=deal.sealed_pair_seed,
    )


def take_refusal(state: Sharing, index: int, message: Refusal) -> tuple[Sharing, Refused]:
    """Take a device out that refuses the roster; what it says of another binds nobody."""
    facts = state.facts
    if index in state.dealt:
        raise RemoteProtocolError(
            "refusal-late",
            "The device accepted this roster before: it has dealt.",
            culprit=facts.identity(index),
        )
    if not -1 <= message.entry < facts.size or message.entry == index:
        raise RemoteProtocolError(
            "refusal-entry",
            "The refusal names no other device of the roster.",
            culprit=facts.identity(index),
            expected=f"another than {index}, below {facts.size}",
            found=message.entry,
        )
    refused = Refused(index, message.reason, message.entry)
    return replace(state, gone=state.gone | {index}), refused


def take_ready(state: Checking, index: int, message: Ready | Complaint) -> Checking:
    """Note a check result; a complaint counts only with the deals that were delivered."""
    facts = state.facts
    if index not in state.dealers:
        raise RemoteProtocolError(
            "not-a-dealer", "Only devices that dealt check.", culprit=facts.identity(index)
        )
    if index in state.answered:
        raise RemoteProtocolError(
            "message-changed", "The device gave another check result before; it stands."
        )
    name = message.pseudonym
    if len(name) != DIGEST_BYTES or name in state.pseudonyms.values():
        raise RemoteProtocolError(
            "pseudonym",
            "A device names itself by 32 bytes that no other device of the cohort has.",
            culprit=facts.identity(index),
            expected=DIGEST_BYTES,
            found=len(name),
        )
    state = replace(
        state,
        answered=state.answered | {index},
        pseudonyms={**state.pseudonyms, index: name},
    )
    if isinstance(message, Ready):
        return state
    accused = message.accused
    if (
        not accused
        or len(message.evidence) != len(accused)
        or list(accused) != sorted(set(accused))
    ):
        raise RemoteProtocolError(
            "complaint-malformed",
            "A complaint names dealers in order, each with its deal.",
            culprit=facts.identity(index),
        )
    disputed: set[int] = set()
    guilty: dict[int, int] = {}
    for dealer, evidence in zip(accused, message.evidence, strict=True):
        kept = state.dealt[dealer].to.get(index) if dealer in state.dealers else None
        if kept is None or kept.digest != digest("deal", evidence):
            raise RemoteProtocolError(
                "complaint-evidence",
                f"The evidence against device {dealer} is not the deal that was delivered.",
                culprit=facts.identity(index),
            )
        try:
            verify(evidence, facts.ctx, Deal, signer=facts.identity(dealer))
            disputed.add(dealer)
        except RemoteProtocolError:
            guilty[dealer] = index
    return replace(
        state,
        accusations={**state.accusations, index: frozenset(disputed)},
        guilty={**guilty, **state.guilty},
    )


def ready_devices(config: ServerConfig, state: Checking) -> tuple[tuple[int, ...], frozenset[int]]:
    """(S, devices that are named as having broken the rules).

    Nobody but the two devices of a disputed deal can tell which of them lies. The named dealer
    is left out; but a device that disputes more dealers than may be corrupt is the liar by the
    manifest's own assumption, so it is left out instead and its disputes count for nothing.
    That bounds what one corrupt device can do to the others.
    """
    limit = max(1, config.manifest.cohort.corrupt_max)
    liars = frozenset(a for a, named in state.accusations.items() if len(named) > limit)
    disputed = frozenset(
        dealer
        for accuser, named in state.accusations.items()
        if accuser not in liars and accuser not in state.guilty
        for dealer in named
    )
    guilty = frozenset(state.guilty)
    out = guilty | liars | disputed | state.excluded
    ready = tuple(index for index in sorted(state.answered) if index not in out)
    return ready, guilty | liars


def take_masked_input(
    config: ServerConfig, state: Masking, index: int, message: MaskedInput
) -> tuple[Masking, AcceptUpload]:
    """Fix the digest of a device's vector before its first byte."""
    facts = state.facts
    culprit = facts.identity(index)
    if index not in state.masking_set:
        raise RemoteProtocolError(
            "not-in-masking-set", "The device is not in the masking set.", culprit=culprit
        )
    encoding = config.manifest.encoding
    length = ring.payload_length(config.manifest.data_length, encoding.slice_length)
    size_bytes = ring.packed_size(length, encoding.ring_bits)
    masking = masking_set_digest(facts.ctx, state.masking_set)
    if (message.masking_set_digest, message.size_bytes) != (masking, size_bytes):
        raise RemoteProtocolError(
            "masked-input",
            "The device masked for another set or sends another size.",
            culprit=culprit,
            expected=(masking.hex(), size_bytes),
            found=(message.masking_set_digest.hex(), message.size_bytes),
        )
    if len(message.vector_digest) != DIGEST_BYTES:
        raise RemoteProtocolError(
            "masked-input", "The vector's digest has a wrong size.", culprit=culprit
        )
    return (
        replace(state, announced=state.announced | {index}),
        AcceptUpload(index, message.vector_digest, size_bytes),
    )


def take_vector(state: Masking, index: int) -> Masking:
    """Note that a vector is in the partial sum.

    Raises:
        LocalProtocolError: the driver must not add this vector, or not again.
    """
    if index not in state.announced or index in state.added:
        raise LocalProtocolError(
            "vector-not-due",
            "A vector is added once, after its digest was accepted.",
            expected=sorted(state.announced - state.added)[:8],
            found=index,
        )
    return replace(state, added=state.added | {index})


def take_confirmation(
    state: Confirming, index: int, message: Confirmation, signed: bytes
) -> Confirming:
    """Keep a survivor's signed confirmation of exactly this S and U."""
    facts = state.facts
    masking = masking_set_digest(facts.ctx, state.masking_set)
    expected = (masking, survivor_set_digest(facts.ctx, masking, state.survivors))
    found = (message.masking_set_digest, message.survivor_set_digest)
    if index not in state.survivors or found != expected:
        raise RemoteProtocolError(
            "confirmation",
            "The confirmation is not a survivor's word for the fixed sets.",
            culprit=facts.identity(index),
            expected=expected[1].hex(),
            found=found[1].hex(),
        )
    return replace(state, confirmations={**state.confirmations, index: signed})
