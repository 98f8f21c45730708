"""An honest attack on our own training: what does one run give away at least?

One-run audit (Steinke, Nasr, Jagielski 2023, "Privacy auditing with one (1) training run"): m
canaries are each in the training or not by a fair coin of their own; the attacker sees every
release and guesses some of the coins. If training is (epsilon, delta)-private with respect to
adding or removing one example, so many right guesses are improbable (Theorem 5.2); what is too
improbable gives a lower bound on epsilon with a confidence. A lower bound above what the accountant
claims proves a bug; one below it proves nothing.

The attacker here is as strong as the claim: it knows everything but the coins, and its canaries
are gradients along directions of their own, as large as the clip lets them be.

Guesses are a blunt tool for the clip: one run cannot tell an epsilon from twice that. The same
scores also measure the clip itself: the mean over canaries that are in less that over those that
are out is how far one example moves a sum. More than one clip, by five standard errors, breaks the
promise too. Less than half a clip says that the attack looked at nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from dp.accounting.statements import headline, lines
from dp.encoding import decode, encode
from dp.errors import AccountingError
from dp.example_sum import ExampleSum
from secagg.ring import add_into

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dp.noise.stream import RandomBytes
    from secagg.manifest import Manifest
    from secagg.ring import Lanes

_GUESSED = (16, 8, 4, 2, 1)  # the attacker guesses m / 16, ..., m of the coins
_CANARY = 1e3  # gradients far longer than the clip
_EPSILON_MAX = 64.0
_SIGMAS = 5.0  # of the interval for the influence: a false alarm in three million runs
_IN_VAIN = 0.5

Share = Callable[["Manifest", "NDArray[np.int64]", "RandomBytes"], "Lanes"]
"""What one device makes of its clipped total: its payload, noise included."""
BatchSum = Callable[["Manifest", "RandomBytes"], ExampleSum]
"""What a device adds up its examples' gradients with."""


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """``epsilon_lower``: holds with the stated confidence, if the coins were fair."""

    canaries: int
    guesses: int
    correct: int
    epsilon_lower: float
    confidence: float


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """How far one canary moved one sum along its direction, in clips: five standard errors either
    way. At most 1 if the clip holds."""

    lower: float
    measured: float
    upper: float


class AttackResult(msgspec.Struct, frozen=True, kw_only=True):
    """``epsilon_upper``: the accountant's unamplified cost of the same releases."""

    judgement: Judgement
    influence: Influence
    epsilon_upper: float
    delta: float
    releases: int

    @property
    def holds(self) -> bool:
        """Whether neither the guesses nor the measured clip break the promise."""
        return self.judgement.epsilon_lower <= self.epsilon_upper and self.influence.lower <= 1

    @property
    def in_vain(self) -> bool:
        """Whether the canaries hardly moved anything, so that nothing was tested."""
        return self.influence.upper < _IN_VAIN


def guess_probability(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """At most this often would (epsilon, delta)-private training allow so many right guesses.

    Steinke, Nasr, Jagielski (2023), Theorem 5.2 with m = ``canaries`` fair coins (their Corollary
    5.4 and the program of their Appendix D, two printed values of which are tested): with W right
    of r guesses by randomised response, P[W >= v] + 2 m delta max over i of P[v - i <= W < v] / i.
    Rounded up.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    counts = 0 <= correct <= guesses <= canaries
    if not (counts and 0 <= epsilon < math.inf and 0 <= delta < 1):
        raise AccountingError(
            "parameter-out-of-range",
            "An audit needs correct <= guesses <= canaries, and a privacy to refute.",
            found=(correct, guesses, canaries, epsilon, delta),
        )
    log_in = -math.log1p(math.exp(-epsilon))
    right = np.arange(guesses + 1)
    weights = np.exp(_log_ways(guesses) + right * log_in + (guesses - right) * (log_in - epsilon))
    beta, below = float(weights[correct:].sum()), weights[:correct][::-1].cumsum()
    alpha = float((below / np.arange(1, correct + 1)).max()) if correct else 0.0
    return min(1.0, (beta + 2 * canaries * delta * alpha) * (1 + 1e-9))


@lru_cache(maxsize=64)
def _log_ways(count: int) -> NDArray[np.float64]:
    """log of the binomial coefficients of ``count``."""
    factorial = np.array([math.lgamma(k + 1) for k in range(count + 1)])
    ways: NDArray[np.float64] = factorial[-1] - factorial - factorial[::-1]
    return ways


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float
) -> float:
    """The largest epsilon that so many right guesses refute, by bisection, rounded down.

    Raises:
        AccountingError: ``parameter-out-of-range``.
    """
    if not 0 < confidence < 1:
        raise AccountingError(
            "parameter-out-of-range",
            "A confidence is a probability.",
            expected="0 < confidence < 1",
            found=confidence,
        )
    low, high = 0.0, _EPSILON_MAX
    if guess_probability(canaries, guesses, correct, 0.0, delta) > 1 - confidence:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        refuted = guess_probability(canaries, guesses, correct, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def judge(
    scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float, confidence: float
) -> Judgement:
    """The best lower bound over a few fixed numbers of guesses, each at its share of the doubt.

    Args:
        scores: float[m]; the larger, the surer the attacker is that the canary is in.
        included: bool[m], the coins.
    """
    count = len(scores)
    order = np.argsort(scores, kind="stable")
    each = 1 - (1 - confidence) / len(_GUESSED)
    best: Judgement | None = None
    for part in _GUESSED:
        half = max(1, count // (2 * part))
        right = int(included[order[-half:]].sum()) + int((~included[order[:half]]).sum())
        bound = epsilon_lower_bound(count, 2 * half, right, delta, each)
        if best is None or bound > best.epsilon_lower:
            best = Judgement(
                canaries=count,
                guesses=2 * half,
                correct=right,
                epsilon_lower=bound,
                confidence=confidence,
            )
    if best is None:
        raise AssertionError("there is always a number of guesses")
    return best


def influence(scores: NDArray[np.float64], included: NDArray[np.bool_], clips: float) -> Influence:
    """The difference of the two means, over ``clips``: what a canary can move a score by.

    Args:
        scores: float[m]; sums over the releases with canaries, less those without.
        included: bool[m], the coins, some of each.
    """
    members, others = scores[included], scores[~included]
    measured = float(members.mean() - others.mean()) / clips
    error = math.sqrt(members.var(ddof=1) / len(members) + others.var(ddof=1) / len(others)) / clips
    return Influence(
        lower=measured - _SIGMAS * error, measured=measured, upper=measured + _SIGMAS * error
    )


def honest_share(manifest: Manifest, total: NDArray[np.int64], random_bytes: RandomBytes) -> Lanes:
    """The payload as a device makes it, :func:`dp.encoding.encode`."""
    return encode(manifest, {"gradient": total}, rotation_seed=b"", random_bytes=random_bytes)


def run_attack(
    manifest: Manifest,
    gradients: Callable[[NDArray[np.float64]], Sequence[NDArray[np.float64]]],
    *,
    canaries: int,
    releases: int,
    confidence: float,
    learning_rate: float,
    random_bytes: RandomBytes,
    share: Share = honest_share,
    batch_sum: BatchSum = ExampleSum,
    only_even: bool = False,
) -> AttackResult:
    """Train under distributed noise with canaries, release by release, and attack what was
    released.

    As many devices send as the accounting counts on, the fewest honest ones; the canaries are in
    the first one's batch. A canary's direction has one coordinate in each half of the vector, so
    that a clip of each part alone is seen as well.

    Args:
        manifest: distributed noise, with room for ``canaries`` examples in one batch.
        gradients: per-example gradients of the honest data at a model, float[d] each.
        canaries: at most d / 2; half of them, by fair coins, take part in every release.
        learning_rate: of the step along the mean of the honest examples.
        share: replaced to show that a bug of the noise is caught.
        batch_sum: replaced to show that a bug of the clip is caught.
        only_even: canaries take part in every other release only, and the attacker subtracts the
            others: finds noise that repeats.

    Raises:
        AccountingError: ``no-privacy``, ``parameter-out-of-range``, ``coins-alike``.
    """
    upper = headline(lines(manifest, releases))
    if upper is None or manifest.noise is None:
        raise AccountingError("no-privacy", "There is no claim to attack.")
    half = manifest.data_length // 2
    if not 1 <= canaries <= half:
        raise AccountingError(
            "parameter-out-of-range",
            "Each canary needs a direction of its own.",
            expected=f"1 to {half}",
            found=canaries,
        )
    coins = np.frombuffer(random_bytes(canaries), np.uint8) & 1 == 1
    if not 2 <= coins.sum() <= canaries - 2:
        raise AccountingError(
            "coins-alike",
            "Hardly any canary is on one of the two sides, so there is nothing to compare.",
            expected="at least 2 in and 2 out",
            found=int(coins.sum()),
            remedy="More canaries.",
        )
    senders = manifest.noise.honest_min
    model, scores = np.zeros(manifest.data_length), np.zeros(canaries)
    for release in range(releases):
        with_canaries = release % 2 == 0 or not only_even
        honest = gradients(model)
        payload: Lanes | None = None
        for device in range(senders):
            batch = batch_sum(manifest, random_bytes)
            for gradient in honest[device::senders]:
                batch.add(gradient)
            if device == 0 and with_canaries:
                _add_canaries(batch, coins, manifest.data_length)
            mine = share(manifest, batch.total, random_bytes)
            if payload is None:
                payload = mine.copy()
            else:
                add_into(payload, mine, manifest.encoding.ring_bits)
        if payload is None:
            raise AssertionError("a cohort has at least one honest device")
        released = decode(manifest, payload, survivors=senders, rotation_seed=b"")["gradient"]
        along = (released[:canaries] + released[half : half + canaries]) / math.sqrt(2)
        scores += along * (1 if with_canaries else -1)
        model = model - learning_rate * released / max(1, len(honest))
    delta, segment = manifest.budget.delta, manifest.segments[0]
    taken_part = (releases + 1) // 2 if only_even else releases
    return AttackResult(
        judgement=judge(scores, coins, delta, confidence),
        influence=influence(scores, coins, taken_part * segment.clip_units / segment.scale),
        epsilon_upper=upper,
        delta=delta,
        releases=releases,
    )


def _add_canaries(batch: ExampleSum, coins: NDArray[np.bool_], length: int) -> None:
    for index in np.flatnonzero(coins):
        gradient = np.zeros(length)
        gradient[[index, length // 2 + index]] = _CANARY
        batch.add(gradient)
