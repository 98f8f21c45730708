"""Different sets to different devices, with devices on the aggregator's side, at the margin.

Each attack works where the threshold is one less, or does not count the corrupt devices.
docs/parameters.md proves that none works at the threshold as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from secagg import client, messages
from secagg.client import checks
from secagg.context import masking_set_digest, pair_sign, survivor_set_digest
from secagg.graph import parameters
from secagg.keys import signing_key
from secagg.secret import Secret
from secagg.simulation import make_task
from tests.kits.adversary import Adversary, failed_reason, plain_vector


class Coalition(Adversary):
    """The aggregator with the last ``corrupt`` devices of the roster, whose secrets it shares.

    They deal and check like honest ones. Then it knows their mask secrets and the shares that they
    hold of both secrets of each neighbour, and signs in their names whatever it likes.
    """

    def __init__(self, size: int, corrupt: int, survivors_min: int) -> None:
        super().__init__(make_task(size, 4, survivors_min=survivors_min, corrupt_max=corrupt))
        self.corrupt = self.everyone[size - corrupt :]
        self.honest = self.everyone[: size - corrupt]
        drawn = [device.state for device in self.devices]
        self.share()
        self.check()
        self.mask_secrets: dict[int, Secret] = {}
        for index in self.corrupt:
            advertised, checked = drawn[index], self.devices[index].state
            assert isinstance(advertised, client.Advertised)
            assert isinstance(checked, client.Checked)
            self.mask_secrets[index] = advertised.mask_secret
            for owner, held in checked.shares.items():
                self.shares[owner, 0][index] = held.of_self_seed.reveal()
                self.shares[owner, 1][index] = held.of_mask_secret.reveal()

    def show(self, to: Sequence[int], masking: Sequence[int], survivors: Sequence[int]) -> None:
        """These honest devices mask for S, confirm U, and get the confirmations of each other and
        of all corrupt devices; whatever they reveal is kept."""
        for index in to:
            self.say(index, messages.MaskingSet(self.ctx, tuple(masking)))
        for index in to:
            self.say(index, messages.SurvivorSet(self.ctx, tuple(survivors)))
        proof = [self.confirmations[index] for index in to if index in self.confirmations]
        salt = masking_set_digest(self.ctx, tuple(masking))
        digest = survivor_set_digest(self.ctx, salt, tuple(survivors))
        for index in self.corrupt:
            if index in survivors:
                word = messages.Confirmation(self.ctx, index, salt, digest)
                identity = signing_key(self.devices[index].config.identity)
                proof.append(messages.sign(word, self.ctx, identity))
        for index in to:
            self.say(index, messages.Confirmations(self.ctx, tuple(proof)))

    @property
    def needed(self) -> int:
        return parameters.threshold_on(self.graph, self.task.manifest.cohort)

    def read(self, victim: int, masking: Sequence[int], threshold: int) -> np.ndarray | None:
        """The victim's vector, which it masked for ``masking``, from all shares and secrets that
        the coalition has; None if a mask stays."""
        self_seed = self.self_seed(victim, threshold)
        if self_seed is None or victim not in self.masked:
            return None
        seeds = [(self_seed, 1)]
        own = self.mask_secret(victim, threshold)
        for other in masking:
            if other == victim:
                continue
            theirs = self.mask_secrets.get(other) or self.mask_secret(other, threshold)
            if own is not None:
                seed = self.pair_seed_from(victim, own, other)
            elif theirs is not None:
                seed = self.pair_seed_from(other, theirs, victim)
            else:
                return None
            seeds.append((seed, pair_sign(victim, other)))
        return self.strip(self.masked[victim], seeds, members=tuple(masking))


# -- alive here and dead there, with corrupt devices on both sides ---------------------------------


TWO_SIDES = {"size": 10, "corrupt": 2, "survivors_min": 5}  # k = 9, c = 2: t = 6


def alive_and_dead(here: int) -> tuple[Coalition, np.ndarray | None]:
    """The victim and ``here`` others are told that it survived, the rest that it did not."""
    coalition = Coalition(**TWO_SIDES)
    victim, *others = coalition.honest
    alive, dead = (victim, *others[:here]), tuple(others[here:])
    everyone = coalition.everyone
    coalition.show(alive, everyone, everyone)
    coalition.show(dead, everyone, [index for index in everyone if index != victim])
    return coalition, coalition.read(victim, everyone, coalition.needed)


def test_a_threshold_that_counts_no_corrupt_devices_gives_away_both_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parameters, "threshold_on", lambda graph, _: graph.neighbour_count // 2 + 1)
    coalition, stolen = alive_and_dead(here=3)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(coalition.task, coalition.devices[0]).tolist()


@pytest.mark.parametrize("here", range(8))
def test_as_many_corrupt_devices_as_declared_do_not_help_two_sides_to_both_secrets(
    here: int,
) -> None:
    coalition, stolen = alive_and_dead(here)
    assert stolen is None
    opened = (coalition.self_seed(0, coalition.needed), coalition.mask_secret(0, coalition.needed))
    assert any(secret is None for secret in opened)


# -- another masking set for one device ------------------------------------------------------------


def split_masking_sets(confirmers: int, masked_with: int) -> tuple[Coalition, np.ndarray | None]:
    """The victim masks for a set of its own; the others confirm that it survived in theirs.

    Eleven devices, one corrupt. Of the nine honest others the last ``confirmers`` are shown
    everyone as S; the rest are called lost, so that their mask secrets open. The victim is shown
    those, the corrupt device, and ``masked_with`` confirmers.
    """
    coalition = Coalition(11, corrupt=1, survivors_min=6)
    victim, *others = coalition.honest
    lost, live = others[: len(others) - confirmers], others[len(others) - confirmers :]
    own = tuple(sorted((victim, *lost, *coalition.corrupt, *live[:masked_with])))
    coalition.show([victim], own, own)
    survivors = tuple(sorted((victim, *live, *coalition.corrupt)))
    coalition.show(live, coalition.everyone, survivors)
    return coalition, coalition.read(victim, own, coalition.needed)


def test_at_a_threshold_less_by_one_a_vector_opens_that_was_masked_for_another_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four are called lost, five confirm: t = 5 of ten neighbours on either side, none in both."""
    threshold = parameters.threshold
    monkeypatch.setattr(
        parameters,
        "threshold_on",
        lambda graph, rules: threshold(graph.neighbour_count, rules.corrupt_max) - 1,
    )
    coalition, stolen = split_masking_sets(confirmers=5, masked_with=0)
    assert stolen is not None
    assert stolen.tolist() == plain_vector(coalition.task, coalition.devices[0]).tolist()


@pytest.mark.parametrize("masked_with", range(4))
@pytest.mark.parametrize("confirmers", range(4, 9))
def test_at_the_threshold_some_mask_of_a_device_that_was_shown_another_set_stays(
    confirmers: int, masked_with: int
) -> None:
    _, stolen = split_masking_sets(confirmers, masked_with)
    assert stolen is None


def test_the_masking_set_of_the_victim_meets_those_who_open_its_self_seed() -> None:
    """Where both go through, the mask that it shares with one of them is what is left."""
    coalition, stolen = split_masking_sets(confirmers=6, masked_with=2)
    assert stolen is None
    assert 0 in coalition.masked
    assert coalition.self_seed(0, threshold=6) is not None
    survivors = {owner for (owner, kind), held in coalition.shares.items() if len(held) >= 6}
    assert {1, 2, 3}.issubset(survivors)  # those called lost: their mask secrets open
    assert coalition.mask_secret(4, threshold=6) is None
    assert coalition.mask_secret(0, threshold=6) is None


# -- confirmations that nobody signed --------------------------------------------------------------


def forged_confirmations(signature: bytes) -> Adversary:
    """Each device is shown survivors of its own, and confirmations of just these by all of them,
    written by the aggregator, in this very cohort."""
    adversary = Adversary(make_task(6, 4, survivors_min=4))
    adversary.until_masked()
    lost_for = {0: (2, 3), 1: (4, 5), 2: (3, 4), 3: (4, 5), 4: (5, 2), 5: (2, 3)}
    for index in adversary.everyone:
        shown = tuple(other for other in adversary.everyone if other not in lost_for[index])
        adversary.say(index, messages.SurvivorSet(adversary.ctx, shown))
        digests = adversary.confirmation_digests(shown)
        forged = []
        for other in shown:
            word = messages.encode(messages.Confirmation(adversary.ctx, other, *digests))
            said = messages.Signed(word, adversary.identity(other), signature)
            forged.append(msgspec.msgpack.encode(said))
        adversary.say(index, messages.Confirmations(adversary.ctx, tuple(forged)))
    return adversary


def sum_of_two(adversary: Adversary) -> np.ndarray | None:
    seeds = []
    for owner in (0, 1):
        self_seed = adversary.self_seed(owner, 3)
        if self_seed is None:
            return None
        seeds.append((self_seed, 1))
    for owner in (2, 3, 4, 5):
        mask_secret = adversary.mask_secret(owner, 3)
        if mask_secret is None:
            return None
        seeds += [
            (adversary.pair_seed_from(owner, mask_secret, alive), pair_sign(alive, owner))
            for alive in (0, 1)
        ]
    total = adversary.masked[0].astype(np.uint64) + adversary.masked[1]
    return adversary.strip(total.astype("<u4"), seeds)


def test_where_nobody_looks_at_the_signatures_the_aggregator_confirms_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sum of two opens where four are the minimum, and no device ever agreed."""
    monkeypatch.setattr(checks, "_verified", lambda *_: None)
    adversary = forged_confirmations(bytes(64))
    opened = sum_of_two(adversary)
    assert opened is not None
    both = [plain_vector(adversary.task, adversary.devices[index]) for index in (0, 1)]
    assert opened.tolist() == sum(both).tolist()


@pytest.mark.parametrize("signature", [b"", bytes(64), b"s" * 64], ids=["none", "zero", "random"])
def test_a_confirmation_that_its_device_did_not_sign_ends_the_exchange(signature: bytes) -> None:
    adversary = forged_confirmations(signature)
    assert {failed_reason(device) for device in adversary.devices} == {"signature-invalid"}
    assert not adversary.shares
