"""Attacks on the noise: they beat a weakened mechanism's promise, and never ours.

The adversary knows everything but whether one example is in: it projects the released sum on that
example's gradient, over many runs, and turns the rates of a threshold test into a lower bound on
epsilon (Clopper-Pearson, 99.9 %): TPR <= e^eps FPR + delta.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from scipy import stats

from dp.accounting.statements import headline, lines
from dp.encoding import decode, encode
from dp.example_sum import ExampleSum
from secagg.manifest import Manifest
from secagg.ring import add_into
from tests.kits.tasks import adapter, built, seeded

RUNS = 2000
HONEST = 3  # shares that count: survivors_min 4, silent_max 1
CANARY = np.zeros(16)
CANARY[3] = 7.0


def released(manifest: Manifest, total: np.ndarray, run: int, senders: int = HONEST) -> float:
    payload = None
    for device in range(senders):
        mine = total if device == 0 else np.zeros_like(total)
        share = encode(
            manifest,
            {"gradient": mine},
            rotation_seed=b"",
            random_bytes=seeded(run * 16 + device),
        )
        if payload is None:
            payload = share
        else:
            add_into(payload, share, manifest.encoding.ring_bits)
    return float(decode(manifest, payload, survivors=senders, rotation_seed=b"")["gradient"][3])


def epsilon_lower_bound(scores_in: np.ndarray, scores_out: np.ndarray, delta: float) -> float:
    """The best threshold is chosen on one half of the runs and judged on the other."""
    half = len(scores_in) // 2

    def bound(threshold: float, part: slice) -> float:
        hits = int((scores_in[part] > threshold).sum())
        false = int((scores_out[part] > threshold).sum())
        count = len(scores_in[part])
        low = stats.beta.ppf(0.0005, hits, count - hits + 1) if hits else 0.0
        high = stats.beta.ppf(0.9995, false + 1, count - false) if false < count else 1.0
        return math.log((low - delta) / high) if low > delta else -math.inf

    first, second = slice(0, half), slice(half, None)
    candidates = np.quantile(scores_out, np.linspace(0.5, 1, 60))
    best = max(candidates.tolist(), key=lambda threshold: bound(threshold, first))
    return bound(best, second)


def attack(
    manifest: Manifest, summed: Callable[[bool, int], np.ndarray], senders: int = HONEST
) -> float:
    scores = [
        np.array(
            [
                released(manifest, summed(member, run), run * 2 + member, senders)
                for run in range(RUNS)
            ]
        )
        for member in (True, False)
    ]
    return epsilon_lower_bound(scores[0], scores[1], manifest.budget.delta)


def honest_sum(manifest: Manifest) -> Callable[[bool, int], np.ndarray]:
    def summed(member: bool, run: int) -> np.ndarray:
        batch = ExampleSum(manifest, seeded(run))
        if member:
            batch.add(CANARY)
        return batch.total

    return summed


MANIFEST = built(adapter=adapter((4,)))
CLAIMED = headline(lines(MANIFEST, 1))


def test_the_attack_stays_below_the_promise() -> None:
    found = attack(MANIFEST, honest_sum(MANIFEST))
    assert 0.2 < found < CLAIMED  # it does see something, so it is an attack


def test_missing_noise_breaks_the_promise() -> None:
    share = MANIFEST.noise.share_variance
    weakened = msgspec.structs.replace(
        MANIFEST, noise=msgspec.structs.replace(MANIFEST.noise, share_variance=share // 25)
    )
    assert attack(weakened, honest_sum(MANIFEST)) > CLAIMED


def test_counting_the_noise_of_silent_devices_breaks_the_promise() -> None:
    """Noise sized for 60 devices of which one is honest after all."""
    share = MANIFEST.noise.share_variance
    shared_out = msgspec.structs.replace(
        MANIFEST, noise=msgspec.structs.replace(MANIFEST.noise, share_variance=share * HONEST // 30)
    )
    assert attack(shared_out, honest_sum(MANIFEST), senders=1) > CLAIMED


def test_a_missing_integer_clip_breaks_the_promise() -> None:
    bound = MANIFEST.segments[0].clip_units

    def unclipped(member: bool, run: int) -> np.ndarray:
        total = np.zeros(16, dtype=np.int64)
        if member:
            total[3] = 5 * bound
        return total

    assert attack(MANIFEST, unclipped) > CLAIMED


def test_repeated_noise_breaks_the_promise() -> None:
    """Coins that repeat across two sums cancel in their difference."""
    zero = np.zeros(16, dtype=np.int64)
    batch = ExampleSum(MANIFEST, seeded())
    batch.add(CANARY)
    same = [
        encode(MANIFEST, {"gradient": total}, rotation_seed=b"", random_bytes=seeded(5))
        for total in (batch.total, zero)
    ]
    difference = same[0].astype(np.int64) - same[1].astype(np.int64)
    assert np.array_equal(difference[1:] % (1 << MANIFEST.encoding.ring_bits), batch.total)
    randomness = seeded(5)
    fresh = [
        encode(MANIFEST, {"gradient": total}, rotation_seed=b"", random_bytes=randomness)
        for total in (batch.total, zero)
    ]
    difference = fresh[0].astype(np.int64) - fresh[1].astype(np.int64)
    assert not np.array_equal(difference[1:] % (1 << MANIFEST.encoding.ring_bits), batch.total)


@pytest.mark.parametrize(("effect", "expected"), [(0.0, 0.0), (6.0, 4.0)])
def test_the_meter_of_the_attack_is_sound_on_known_distributions(
    effect: float, expected: float
) -> None:
    rng = np.random.default_rng(0)
    found = epsilon_lower_bound(rng.normal(size=3000) + effect, rng.normal(size=3000), 1e-5)
    assert found <= 0.1 if effect == 0 else found > expected
