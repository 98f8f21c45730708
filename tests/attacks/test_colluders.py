"""A third of the cohort on the aggregator's side, below the threshold.

Together they hold every message, every secret of their own devices, every share that honest
devices dealt to them, and every answer to unmask. What is left of an honest vector after all masks
that they can take off must not depend on it beyond the sum. The claim is computational; what a test
can do is to look for the dependence with statistics of stated significance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from secagg import client, sharing
from secagg.context import pair_sign
from secagg.graph import parameters
from secagg.secret import Secret
from secagg.simulation import SimulatedTask, make_devices, make_task
from tests.kits.adversary import Adversary

CLIENTS, COLLUDERS = 9, 3  # k = 8, c = 3: t = 6; a third is corrupt
LENGTH = 1 << 14
BITS = 16  # a small ring shows any bias soonest
SIGNIFICANCE = 1e-9  # of each statistic; inputs and secrets are seeded, so nothing is left to luck
# Critical values: normal quantile, and chi-square with 255 degrees of freedom.
NORMAL_CRITICAL = 6.1094  # two-sided
CHI_SQUARE_CRITICAL = 414.545  # 255 degrees of freedom


def task() -> SimulatedTask:
    return make_task(
        CLIENTS,
        LENGTH,
        ring_bits=BITS,
        slice_length=LENGTH,
        survivors_min=CLIENTS - 1,
        corrupt_max=COLLUDERS,
    )


@dataclass
class View:
    """What the colluders have of one honest device: its vector without every mask they know."""

    residual: np.ndarray  # centred in the ring
    total: np.ndarray  # of the honest inputs, as opened


def inputs(world: int) -> list[np.ndarray]:
    """Two worlds with the same sum of honest inputs; the first device's are far apart."""
    ramp = np.arange(LENGTH, dtype=np.int64) % 4096
    quiet = np.zeros(LENGTH, np.int64)
    first, second = (ramp, quiet) if world else (quiet, ramp)
    return [first, second, *[quiet + 3] * (CLIENTS - 2)]


def stolen_pair_seeds(
    adversary: Adversary, victim: int, shares: dict[int, bytes], threshold: int
) -> dict[int, Secret] | None:
    """All pair seeds of the victim, if the colluders' shares of its mask secret suffice."""
    if len(shares) < threshold:
        return None
    held = dict(sorted(shares.items())[:threshold])
    mask_secret = sharing.join(held, sharing.lagrange_at_zero(list(held)))
    others = [other for other in adversary.everyone if other != victim]
    return {other: adversary.pair_seed_from(victim, mask_secret, other) for other in others}


def look(world: int) -> View:
    """Run an honest-looking exchange and take off whatever three colluders can take off."""
    shown = task()
    adversary = Adversary(shown, devices=make_devices(shown, inputs(world), seed=world))
    # What each device drew; the attack looks only at the colluders' own.
    adversary.drawn = [device.state.mask_secret for device in adversary.devices]
    by_number = {device.number: index for index, device in enumerate(adversary.devices)}
    victim = by_number[0]
    colluders = [by_number[CLIENTS - 1 - n] for n in range(COLLUDERS)]
    honest = [index for index in adversary.everyone if index not in colluders]
    adversary.share()
    adversary.check()
    pairs: dict[int, Secret] = {}
    shares: dict[int, bytes] = {}
    for colluder in colluders:
        state = adversary.devices[colluder].state
        assert isinstance(state, client.Checked)
        pairs[colluder] = state.pair_seeds[victim]
        shares[colluder] = state.shares[victim].of_mask_secret.reveal()
    threshold = state.session.threshold
    adversary.mask()
    adversary.confirm(lambda _: adversary.everyone)
    adversary.unmask(lambda _: adversary.everyone)
    self_seeds = {owner: adversary.self_seed(owner, threshold) for owner in honest}
    assert all(self_seeds.values()), "the sum opens as it should"
    seeds = [(self_seeds[victim], 1)]
    stolen = stolen_pair_seeds(adversary, victim, shares, threshold)
    known = stolen or pairs
    seeds += [(seed, pair_sign(victim, other)) for other, seed in known.items()]
    residual = adversary.strip(adversary.masked[victim], seeds)
    return View(residual, honest_total(adversary, honest, colluders, self_seeds))


def honest_total(adversary: Adversary, honest, colluders, self_seeds) -> np.ndarray:
    """The honest devices' sum: their masks among themselves cancel, the rest is known."""
    total = np.zeros_like(adversary.masked[honest[0]])
    seeds = []
    for owner in honest:
        total += adversary.masked[owner]
        seeds.append((self_seeds[owner], 1))
        for colluder in colluders:
            seeds.append((edge_seed(adversary, owner, colluder), pair_sign(owner, colluder)))
    return adversary.strip(total, seeds)


def edge_seed(adversary: Adversary, owner: int, colluder: int) -> Secret:
    """A pair seed from the colluder's own mask secret, which it drew itself."""
    return adversary.pair_seed_from(colluder, adversary.drawn[colluder], owner)


def chi_square(residual: np.ndarray, shift: int) -> float:
    """Against the uniform distribution of one byte of the ring's elements."""
    counts = np.bincount((residual >> shift) & 0xFF, minlength=256)
    expected = len(residual) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def statistics(view: View) -> tuple[float, float, float]:
    """Chi-square of both bytes; correlation with the ramp, which the victim has in one world and
    its neighbour in the other, as a standard normal deviate."""
    correlation = np.corrcoef(view.residual, inputs(1)[0])[0, 1] * np.sqrt(LENGTH)
    return chi_square(view.residual, 0), chi_square(view.residual, 8), abs(float(correlation))


@pytest.mark.parametrize("world", [0, 1])
def test_what_a_third_sees_of_an_honest_vector_is_uniform(world: int) -> None:
    view = look(world)
    low, high, correlation = statistics(view)
    assert low < CHI_SQUARE_CRITICAL
    assert high < CHI_SQUARE_CRITICAL
    assert correlation < NORMAL_CRITICAL


def test_what_a_third_sees_does_not_tell_worlds_with_the_same_sum_apart() -> None:
    """Two samples, secrets drawn anew: the opened sums are equal, the histograms alike."""
    one, other = look(0), look(1)
    expected = sum(inputs(0)[: CLIENTS - COLLUDERS])
    assert one.total.tolist() == other.total.tolist() == expected.tolist()
    for shift in (0, 8):
        a, b = (
            np.bincount((view.residual >> shift) & 0xFF, minlength=256) for view in (one, other)
        )
        assert float(((a - b) ** 2 / np.maximum(a + b, 1)).sum()) < CHI_SQUARE_CRITICAL


@pytest.mark.parametrize("world", [0, 1])
def test_with_a_threshold_that_a_third_reaches_they_read_the_vector(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weakened build shares with t = 3, which the colluders hold."""
    monkeypatch.setattr(parameters, "threshold_on", lambda graph, rules: COLLUDERS)
    view = look(world)
    assert view.residual.tolist() == inputs(world)[0].tolist()
    if world:
        _, high, correlation = statistics(view)
        assert high > CHI_SQUARE_CRITICAL
        assert correlation > NORMAL_CRITICAL


def test_without_masks_between_honest_devices_the_statistics_notice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph whose only edges go to the aggregator's side would leave nothing in the way."""
    shown = task()
    order = sorted(
        range(CLIENTS), key=lambda number: shown.devices[number].certificate.identity_key
    )
    corrupt = {order.index(CLIENTS - 1 - n) for n in range(COLLUDERS)}
    genuine_sign, genuine_apply = client.machine.pair_sign, client.machine.masks.apply_masks
    monkeypatch.setattr(
        client.machine,
        "pair_sign",
        lambda own, other: genuine_sign(own, other) if other in corrupt else 0,
    )

    def without_honest_edges(vector, terms, ring_bits, lo=0):
        genuine_apply(vector, [term for term in terms if term.sign], ring_bits, lo)

    monkeypatch.setattr(client.machine.masks, "apply_masks", without_honest_edges)
    assert statistics(look(1))[2] > NORMAL_CRITICAL
