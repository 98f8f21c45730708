"""Step 2 at the device: what it deals to each neighbour, and what it makes of their deals."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from secagg import keys, sealing, sharing
from secagg.client.events import ClientConfig
from secagg.client.states import Advertised, Exchange, HeldShares, Shared
from secagg.context import (
    CHANNEL_KEY,
    KIND_PAIR_SEED,
    KIND_SHARES,
    MASK_KEY,
    noise_seed_commitment,
    pair_seed,
    seal_info,
    sealed_shares_bytes,
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
    exchange: Exchange,
    adverts: Mapping[int, Advert],
    tools: Tools,
) -> tuple[Deals, tuple[Secret, ...]]:
    """One signed deal per neighbour: shares of every secret and, from the edge's sealer, the seed
    of the mask that the two have in common.

    Returns:
        The deals, and the seeds of the removable parts of the noise, drawn here: after the roster
        has closed and for this cohort alone.

    Raises:
        RemoteProtocolError: a neighbour's public key is malformed; names it.
    """
    noise_seeds = tuple(
        Secret(tools.random_bytes(SEED_BYTES)) for _ in config.manifest.removable_drops
    )
    by_kind = [
        sharing.split(secret, exchange.threshold, exchange.neighbours, tools.random_bytes)
        for secret in (state.self_seed, state.mask_secret, *noise_seeds)
    ]
    identity = keys.signing_key(config.identity)
    own = exchange.identity_keys[exchange.index]
    ctx, graph = exchange.ctx, exchange.graph
    deals = []
    for neighbour in exchange.neighbours:
        shares = [dealt[neighbour].reveal() for dealt in by_kind]
        peer = exchange.identity_keys[neighbour]
        advert = adverts[neighbour]
        try:
            sealed_pair_seed = b""
            if graph.sealer(exchange.index, neighbour) == exchange.index:
                sealed_pair_seed = tools.seal(
                    advert.mask_key,
                    seal_info(ctx, own, peer, KIND_PAIR_SEED),
                    pair_seed(state.mask_secret, ctx, own, peer).reveal(),
                )
            sealed_shares = tools.seal(
                advert.channel_key, seal_info(ctx, own, peer, KIND_SHARES), b"".join(shares)
            )
        except RemoteProtocolError as error:
            error.culprit = peer
            raise
        hashes = [share_hash(kind, ctx, own, peer, share) for kind, share in enumerate(shares)]
        deal = Deal(
            ctx=ctx,
            sender=exchange.index,
            recipient=neighbour,
            sealed_pair_seed=sealed_pair_seed,
            sealed_shares=sealed_shares,
            share_hashes=tuple(hashes),
        )
        deals.append(sign(deal, ctx, identity))
    commitments = tuple(
        noise_seed_commitment(own, level, seed) for level, seed in enumerate(noise_seeds)
    )
    return Deals(ctx, tuple(deals), commitments), noise_seeds


@dataclass(frozen=True)
class DecryptedDeals:
    """What the inbox held. ``refused``: dealers whose deal is refused, with the deal as sent."""

    pair_seeds: dict[int, Secret]
    shares: dict[int, HeldShares]
    refused: dict[int, bytes]


def decrypt_inbox(state: Shared, inbox: Inbox) -> DecryptedDeals:
    """Verify and decrypt every deal of the inbox.

    A deal that fails its signature, its seals or its hashes is refused and becomes a complaint.

    Raises:
        RemoteProtocolError: an honest aggregator does not send this inbox.
    """
    exchange = state.session
    graph, neighbours = exchange.graph, frozenset(exchange.neighbours)
    mask_key = sealing.kem_private_key(state.mask_secret, MASK_KEY)
    channel_key = sealing.kem_private_key(state.channel_secret, CHANNEL_KEY)
    decrypted = DecryptedDeals({}, {}, {})
    last = -1
    for signed in inbox.deals:
        claimed, _ = peek(signed, Deal)
        dealer = claimed.sender
        if dealer <= last or dealer not in neighbours:
            raise RemoteProtocolError(
                "inbox-dealer",
                "The inbox is not a strictly ordered list of neighbours' deals.",
                expected=f"a neighbour above {last}",
                found=dealer,
            )
        last = dealer
        try:
            deal = verify_deal(exchange, dealer, signed)
            shares = decrypt_shares(exchange, deal, channel_key, len(state.noise_seeds))
            if graph.sealer(dealer, exchange.index) == dealer:
                decrypted.pair_seeds[dealer] = decrypt_pair_seed(exchange, deal, mask_key)
            else:
                peer = exchange.identity_keys[dealer]
                own = exchange.identity_keys[exchange.index]
                decrypted.pair_seeds[dealer] = pair_seed(state.mask_secret, exchange.ctx, own, peer)
            decrypted.shares[dealer] = shares
        except RemoteProtocolError:
            decrypted.refused[dealer] = signed
    return decrypted


def verify_deal(exchange: Exchange, dealer: int, signed: bytes) -> Deal:
    """The deal is signed by its dealer, for this exchange and this device.

    Sealing to a public key authenticates nobody: without this signature the aggregator could
    replace every pair seed sealed to a victim by its own, and read the victim's vector.
    """
    deal, _ = verify(signed, exchange.ctx, Deal, signer=exchange.identity_keys[dealer])
    if (deal.ctx, deal.sender, deal.recipient) != (exchange.ctx, dealer, exchange.index):
        raise RemoteProtocolError(
            "deal-address",
            "The deal is for another device or exchange.",
            culprit=exchange.identity_keys[dealer],
            expected=(dealer, exchange.index),
            found=(deal.sender, deal.recipient),
        )
    return deal


def decrypt_shares(
    exchange: Exchange, deal: Deal, channel_key: sealing.KemPrivateKey, noise_levels: int
) -> HeldShares:
    """Unseal the shares and compare them with the hashes that the dealer signed."""
    dealer = exchange.identity_keys[deal.sender]
    own = exchange.identity_keys[exchange.index]
    info = seal_info(exchange.ctx, dealer, own, KIND_SHARES)
    together = sealing.hpke_open(channel_key, info, deal.sealed_shares)
    shares = [
        together[start : start + SHARE_BYTES] for start in range(0, len(together), SHARE_BYTES)
    ]
    hashes = [
        share_hash(kind, exchange.ctx, dealer, own, share) for kind, share in enumerate(shares)
    ]
    if len(together) != sealed_shares_bytes(noise_levels) or not hmac.compare_digest(
        b"".join(hashes), b"".join(deal.share_hashes)
    ):
        raise RemoteProtocolError(
            "deal-shares", "The shares do not match their signed hashes.", culprit=dealer
        )
    self_seed, mask_secret, *noise = map(Secret, shares)
    return HeldShares(of_mask_secret=mask_secret, of_self_seed=self_seed, of_noise=tuple(noise))


def decrypt_pair_seed(exchange: Exchange, deal: Deal, mask_key: sealing.KemPrivateKey) -> Secret:
    """Unseal the seed of the mask in common with the dealer."""
    dealer = exchange.identity_keys[deal.sender]
    own = exchange.identity_keys[exchange.index]
    info = seal_info(exchange.ctx, dealer, own, KIND_PAIR_SEED)
    seed = sealing.hpke_open(mask_key, info, deal.sealed_pair_seed)
    if len(seed) != SEED_BYTES:
        raise RemoteProtocolError(
            "deal-pair-seed",
            "The pair seed has a wrong size.",
            culprit=dealer,
            expected=SEED_BYTES,
            found=len(seed),
        )
    return Secret(seed)
