"""Attacks on what a device's neighbours are said to have dealt to it."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from secagg import messages
from secagg.client import deals
from secagg.context import seal_info, share_hash
from secagg.graph import harary
from secagg.keys import signing_key
from secagg.secret import Secret
from secagg.simulation import SimulatedTask, make_task
from tests.kits.adversary import Adversary, failed_reason, forge_deal, plain_vector, unverified

CLIENTS = 6  # k = 5, no corrupt device: t = 3


def task(**settings: int) -> SimulatedTask:
    return make_task(CLIENTS, 4, survivors_min=3, **settings)


# -- pair seeds sealed by the aggregator ---------------------------------------------------------


def read_with_forged_seeds(adversary: Adversary) -> tuple[int, np.ndarray | None]:
    """One round that looks honest to everyone; the neighbours for whom the victim itself sealed
    are declared dropped, so that their mask secrets, hence those seeds, are opened."""
    sealed_by = {
        v: [o for o in adversary.everyone if o != v and harary.sealer(v, o) == v]
        for v in adversary.everyone
    }
    victim = next(v for v, others in sealed_by.items() if len(others) == 2)
    forged_seed = Secret(b"f" * 32)
    adversary.share()
    adversary.check(only=[i for i in adversary.everyone if i != victim])
    others = harary.neighbours(victim, adversary.size)
    forged = tuple(forge_deal(adversary, dealer, victim, forged_seed) for dealer in others)
    adversary.say(victim, messages.Inbox(adversary.ctx, forged))
    adversary.mask()
    dropped = sealed_by[victim]
    alive = tuple(index for index in adversary.everyone if index not in dropped)
    adversary.confirm(lambda index: alive, only=alive)
    adversary.unmask(lambda index: alive, only=alive)
    # The victim holds forged shares, so only those of the others count.
    for held in adversary.shares.values():
        held.pop(victim, None)
    self_seed = adversary.self_seed(victim, 3)
    if self_seed is None or victim not in adversary.masked:
        return victim, None
    seeds = dict.fromkeys(others, forged_seed)
    for other in dropped:
        mask_secret = adversary.mask_secret(other, 3)
        assert mask_secret is not None
        seeds[other] = adversary.pair_seed_from(other, mask_secret, victim)
    return victim, adversary.read_vector(victim, self_seed, seeds)


def test_unsigned_deals_let_the_aggregator_read_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deals, "verify", unverified)
    adversary = Adversary(task())
    victim, stolen = read_with_forged_seeds(adversary)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(adversary.task, adversary.devices[victim]).tolist()


def test_forged_deals_are_refused_with_the_deals_as_evidence() -> None:
    adversary = Adversary(task())
    victim, stolen = read_with_forged_seeds(adversary)
    assert stolen is None
    assert failed_reason(adversary.devices[victim]) == "masking-set-dealer"
    assert victim not in adversary.masked


# -- share reflection ----------------------------------------------------------------------------


def transplant(adversary: Adversary, target: int, colluder: int) -> tuple[Secret | None, ...]:
    """A colluding device deals the target's sealed shares as its own.

    Then the colluder is declared dropped: everyone reveals "its" mask share, which is the
    target's, beside the target's self share.
    """
    adversary.share()
    key = signing_key(adversary.devices[colluder].config.identity)
    for holder in adversary.everyone:
        if holder in (target, colluder):
            continue
        stolen, _ = messages.peek(adversary.deals[target][holder], messages.Deal)
        own, _ = messages.peek(adversary.deals[colluder][holder], messages.Deal)
        planted = msgspec.structs.replace(
            own,
            sealed_shares=stolen.sealed_shares,
            share_hashes=stolen.share_hashes,
        )
        adversary.deals[colluder][holder] = messages.sign(planted, adversary.ctx, key)
    adversary.check()
    adversary.mask()
    alive = tuple(index for index in adversary.everyone if index != colluder)
    adversary.confirm(lambda index: alive, only=alive)
    adversary.unmask(lambda index: alive, only=alive)
    for held in adversary.shares.values():
        held.pop(target, None)
    return adversary.self_seed(target, 4), adversary.mask_secret(colluder, 4)


def test_shares_that_are_not_bound_to_their_dealer_can_be_transplanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weakened build binds seals and hashes to context and kind only."""
    monkeypatch.setattr(
        deals, "seal_info", lambda ctx, sender, recipient, kind: seal_info(ctx, b"", b"", kind)
    )
    monkeypatch.setattr(
        deals,
        "share_hash",
        lambda kind, ctx, dealer, holder, share: share_hash(kind, ctx, b"", b"", share),
    )
    adversary = Adversary(task(corrupt_max=1))
    targets_mask_secret = adversary.devices[1].state.mask_secret
    self_seed, mask_secret = transplant(adversary, target=1, colluder=4)
    assert self_seed is not None
    assert mask_secret is not None
    assert mask_secret.reveal() == targets_mask_secret.reveal()


def test_transplanted_shares_are_refused() -> None:
    adversary = Adversary(task(corrupt_max=1))
    self_seed, mask_secret = transplant(adversary, target=1, colluder=4)
    assert (self_seed, mask_secret) == (None, None)
    for index in (0, 2, 3, 5):
        assert failed_reason(adversary.devices[index]) == "masking-set-dealer"


def test_a_devices_own_deal_does_not_come_back_as_a_neighbours() -> None:
    adversary = Adversary(task())
    adversary.share()
    own = adversary.deals[0][3]
    inbox = [adversary.deals[dealer][0] for dealer in (1, 2)]
    adversary.say(0, messages.Inbox(adversary.ctx, (own, *inbox)))
    assert failed_reason(adversary.devices[0]) == "inbox-dealer"


def test_a_deal_for_another_device_is_not_taken() -> None:
    """Signed by its dealer, but sealed to somebody else."""
    adversary = Adversary(task())
    adversary.share()
    inbox = [adversary.deals[1][2], *(adversary.deals[dealer][0] for dealer in (2, 3, 4, 5))]
    (answer,) = adversary.say(0, messages.Inbox(adversary.ctx, tuple(inbox)))
    complaint, _ = messages.peek(answer, messages.Complaint)
    assert complaint.accused == (1,)


def test_one_dealer_twice_is_no_inbox() -> None:
    adversary = Adversary(task())
    adversary.share()
    twice = (adversary.deals[1][0], adversary.deals[1][0])
    adversary.say(0, messages.Inbox(adversary.ctx, twice))
    assert failed_reason(adversary.devices[0]) == "inbox-dealer"
