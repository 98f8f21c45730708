"""What a plan leaves of the signal: the noise of its steps, beside what examples have in common.

A sum holds N/b clipped gradients: N examples of a cohort's devices, b parts. Their mean has length
s C, for the clip C. Its noise is z C in each of d coordinates, so noise over signal of one step is
z sqrt(d) b / (N s). Over T steps signals add up and noise adds up in squares: signal over noise of
the whole training is sqrt(T) N s / (b z sqrt(d)). With k = T / b sums of each example and
mu = sqrt(k) / z, the parameter of Gaussian privacy, that is N mu s / (sqrt(d) sqrt(b)), whatever T
is. At the same mu, full batches have N mu s / sqrt(d), and Poisson batches of rate 1/b, of which
no amplification is claimed, N mu s / (sqrt(d) b).

All d directions count as noise here and few of them hurt, so much less than 1 is enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec

from dp.schedule import participations

ENOUGH = 0.3
"""Signal over noise of a training of which noise takes little (docs/privacy.md, "Planning a
task", has what was measured)."""
HARDLY = 0.03
"""Below it a training hardly learns."""
SIGNAL = 0.1
"""s where nobody measured it."""


class Needed(msgspec.Struct, frozen=True, kw_only=True):
    """Four ways to ``ENOUGH``, each with all else as it is; None: no value of this one reaches it.

    ``examples`` of the population; ``length`` of the vector; ``passes``; ``epsilon`` of the task.
    """

    examples: int
    length: int | None
    passes: int | None
    epsilon: float | None


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What a planned training leaves.

    ``divisor``: examples in the sum of a full cohort, the public constant that it is divided by.
    ``gradients_per_device``, ``bytes_per_device``: of a device on average, over all releases.
    ``signal``: s, as it was given. ``step_noise_over_signal``: of one step.
    ``signal_over_noise``: of the whole training; ``full_batches`` and ``poisson_batches``: with
    these, at the same epsilon and as many releases.
    ``needed``: where it is less than ``ENOUGH``.
    """

    divisor: float
    gradients_per_device: float
    bytes_per_device: int
    signal: float
    step_noise_over_signal: float
    signal_over_noise: float
    full_batches: float
    poisson_batches: float
    needed: Needed | None


def ratios(
    *, examples: float, releases: int, period: int, noise: float, length: int, signal: float
) -> tuple[float, float, float, float]:
    """The four ratios of :class:`Signal`, in its order.

    Args:
        examples: N, of a full cohort's devices.
        noise: z, of what is really in the sum of a full cohort.
        signal: s.
    """
    whole = examples * signal / (noise * math.sqrt(length))
    full = math.sqrt(participations(releases, period)) * whole
    return (
        period / whole,
        math.sqrt(releases) * whole / period,
        full,
        full / period,
    )


def needed(
    found: float,
    *,
    examples: int,
    length: int,
    releases: int,
    period: int,
    epsilon_at: Callable[[float], float],
) -> Needed | None:
    """What reaches ``ENOUGH`` from the signal over noise that was found; None: it is enough.

    Args:
        examples: of the population.
        epsilon_at: of the task with a fraction of its noise; infinite where none is stated.
    """
    if found >= ENOUGH:
        return None
    factor = ENOUGH / found
    epsilon = epsilon_at(1 / factor)
    return Needed(
        examples=math.ceil(examples * factor),
        length=math.floor(length / factor**2) or None,
        passes=_passes(factor, releases, period),
        epsilon=epsilon if math.isfinite(epsilon) else None,
    )


def _passes(factor: float, releases: int, period: int) -> int | None:
    """The fewest that give ``factor`` more: noise grows with the root of the sums of an example."""

    def noise_over_signal(period: int) -> float:
        return period * math.sqrt(participations(releases, period))

    for shorter in range(period - 1, 0, -1):
        if noise_over_signal(period) >= factor * noise_over_signal(shorter):
            return participations(releases, shorter)
    return None
