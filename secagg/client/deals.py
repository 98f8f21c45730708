"""Step 2 at the device: what it deals to each neighbour, and what it makes of their deals."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from secagg import graph, keys, sharing
from secagg.client.events import ClientConfig
from secagg.client.states import Advertised, HeldShares, Session, Shared
from secagg.context import (
    CHANNEL_KEY,
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    SEALED_SHARES_BYTES,
    SHARE_OF_MASK_SECRET,
    SHARE_OF_SELF_SEED,
    pair_seed,
    seal_info,
    share_hash,
)
from secagg.errors import RemoteProtocolError
from secagg.limits import SEED_BYTES, SHARE_BYTES
from secagg.messages import Advert, Deal, Deals, Inbox, peek, sign, verify
from secagg.secret import Secret
from secagg.tools import Tools


def make_deals(
    config: ClientConfig,
    state: Advertised,
    session: Session,
    adverts: Mapping[int, Advert],
    tools: Tools,
) -> Deals:
    """One signed deal per neighbour: shares of both secrets and, from the edge's sealer, the seed
    of the mask that the two have in common.

    Raises:
        RemoteProtocolError: a neighbour's public key is malformed; names it.
    """
    mask_shares = sharing.split(
        state.mask_secret, session.threshold, session.neighbours, tools.random_bytes
    )
    self_shares = sharing.split(
        state.self_seed, session.threshold, session.neighbours, tools.random_bytes
    )
    identity = keys.signing_key(config.identity)
    own = session.identity_keys[session.index]
    ctx = session.ctx
    deals = []
    for neighbour in session.neighbours:
        mask_share = mask_shares[neighbour].reveal()
        self_share = self_shares[neighbour].reveal()
        peer = session.identity_keys[neighbour]
        advert = adverts[neighbour]
        try:
            sealed_pair_seed = b""
            if graph.sealer(session.index, neighbour) == session.index:
                sealed_pair_seed = tools.seal(
                    advert.mask_key,
                    seal_info(ctx, own, peer, KIND_PAIR_SEED),
                    pair_seed(state.mask_secret, ctx, own, peer).reveal(),
                )
            sealed_shares = tools.seal(
                advert.channel_key, seal_info(ctx, own, peer, KIND_SHARES), mask_share + self_share
            )
        except RemoteProtocolError as error:
            error.culprit = peer
            raise
        deal = Deal(
            ctx=ctx,
            sender=session.index,
            recipient=neighbour,
            sealed_pair_seed=sealed_pair_seed,
            sealed_shares=sealed_shares,
            mask_share_hash=share_hash(SHARE_OF_MASK_SECRET, ctx, own, peer, mask_share),
            self_share_hash=share_hash(SHARE_OF_SELF_SEED, ctx, own, peer, self_share),
        )
        deals.append(sign(deal, ctx, identity))
    return Deals(ctx, tuple(deals))


@dataclass(frozen=True)
class Opened:
    """What the inbox held. ``refused``: dealers whose deal is no good, with the deal as sent."""

    pair_seeds: dict[int, Secret]
    shares: dict[int, HeldShares]
    refused: dict[int, bytes]


def open_inbox(state: Shared, inbox: Inbox) -> Opened:
    """Verify and open every deal of the inbox.

    A deal that fails its signature, its seals or its hashes is refused and becomes a complaint.

    Raises:
        RemoteProtocolError: the inbox itself is none that an honest aggregator sends.
    """
    session = state.session
    mask_key = keys.kem_private_key(state.mask_secret, MASK_KEY)
    channel_key = keys.kem_private_key(state.channel_secret, CHANNEL_KEY)
    opened = Opened({}, {}, {})
    last = -1
    for signed in inbox.deals:
        claimed, _ = peek(signed, Deal)
        dealer = claimed.sender
        if dealer <= last or dealer not in session.neighbours:
            raise RemoteProtocolError(
                "inbox-dealer",
                "The inbox is not a strictly ordered list of neighbours' deals.",
                expected=f"a neighbour above {last}",
                found=dealer,
            )
        last = dealer
        try:
            deal = verify_deal(session, dealer, signed)
            shares = open_shares(session, deal, channel_key)
            if graph.sealer(dealer, session.index) == dealer:
                opened.pair_seeds[dealer] = open_pair_seed(session, deal, mask_key)
            else:
                peer = session.identity_keys[dealer]
                own = session.identity_keys[session.index]
                opened.pair_seeds[dealer] = pair_seed(state.mask_secret, session.ctx, own, peer)
            opened.shares[dealer] = shares
        except RemoteProtocolError:
            opened.refused[dealer] = signed
    return opened


def verify_deal(session: Session, dealer: int, signed: bytes) -> Deal:
    """The deal is signed by its dealer, for this exchange and this device.

    Sealing to a public key authenticates nobody: without this signature the aggregator could
    replace every pair seed sealed to a victim by its own, and read the victim's vector.
    """
    deal, _ = verify(signed, session.ctx, Deal, signer=session.identity_keys[dealer])
    if (deal.ctx, deal.sender, deal.recipient) != (session.ctx, dealer, session.index):
        raise RemoteProtocolError(
            "deal-address",
            "The deal is for another device or exchange.",
            culprit=session.identity_keys[dealer],
            expected=(dealer, session.index),
            found=(deal.sender, deal.recipient),
        )
    return deal


def open_shares(session: Session, deal: Deal, channel_key: keys.KemPrivateKey) -> HeldShares:
    """Unseal the two shares and compare them with the hashes that the dealer signed."""
    dealer = session.identity_keys[deal.sender]
    own = session.identity_keys[session.index]
    info = seal_info(session.ctx, dealer, own, KIND_SHARES)
    both = keys.hpke_open(channel_key, info, deal.sealed_shares)
    mask_share, self_share = both[:SHARE_BYTES], both[SHARE_BYTES:]
    mask_hash = share_hash(SHARE_OF_MASK_SECRET, session.ctx, dealer, own, mask_share)
    self_hash = share_hash(SHARE_OF_SELF_SEED, session.ctx, dealer, own, self_share)
    if (
        len(both) != SEALED_SHARES_BYTES
        or not hmac.compare_digest(mask_hash, deal.mask_share_hash)
        or not hmac.compare_digest(self_hash, deal.self_share_hash)
    ):
        raise RemoteProtocolError(
            "deal-shares", "The shares do not match their signed hashes.", culprit=dealer
        )
    return HeldShares(of_mask_secret=Secret(mask_share), of_self_seed=Secret(self_share))


def open_pair_seed(session: Session, deal: Deal, mask_key: keys.KemPrivateKey) -> Secret:
    """Unseal the seed of the mask in common with the dealer."""
    dealer = session.identity_keys[deal.sender]
    own = session.identity_keys[session.index]
    info = seal_info(session.ctx, dealer, own, KIND_PAIR_SEED)
    seed = keys.hpke_open(mask_key, info, deal.sealed_pair_seed)
    if len(seed) != SEED_BYTES:
        raise RemoteProtocolError(
            "deal-pair-seed",
            "The pair seed has a wrong size.",
            culprit=dealer,
            expected=SEED_BYTES,
            found=len(seed),
        )
    return Secret(seed)
