"""How much noise of known variance a released mean carries: what adaptive optimisers must know."""

from __future__ import annotations

import math

from dp.contracts.algorithms.fednova import public_steps
from dp.contracts.algorithms.registry import algorithm_of
from dp.noise.removable import kept_share, most_variance
from secagg.errors import LocalProtocolError
from secagg.manifest import Manifest


def mean_variance(manifest: Manifest, survivors: int, masking_set_size: int = 0) -> float:
    """Variance per coordinate of the survivors' noise shares in the mean, real units squared.

    The variance in the sum over (scale * public denominator)^2, times FedNova's tau_eff^2; 0
    without noise in the ring or without such a mean. The device-level rotation is orthonormal and
    changes nothing. Stochastic rounding (at most 1/4 unit squared per device) is left out: it is
    under 0.1 % of a noise worth the name.

    Args:
        masking_set_size: devices that owed a vector. Where parts of the noise are removable, what
            stayed follows from it; 0: not known, the target is then counted.

    Raises:
        LocalProtocolError: ``survivors-missing``.
    """
    noise = manifest.noise
    if noise is None or (divisor := _divisor(manifest)) is None:
        return 0.0
    if survivors < 1:
        raise LocalProtocolError(
            "survivors-missing",
            "The noise in a sum follows from the number of its contributors.",
            expected=">= 1",
            found=survivors,
        )
    if not noise.removable_drops:
        total = noise.share_variance * survivors
    elif masking_set_size:
        total = kept_share(noise, manifest.cohort, masking_set_size, survivors) * survivors
    else:
        total = noise.share_variance * noise.honest_min
    return total / divisor**2


def mean_deviation(manifest: Manifest) -> float:
    """The largest standard deviation of that noise in a coordinate of the mean, real units."""
    noise = manifest.noise
    if noise is None or (divisor := _divisor(manifest)) is None:
        return 0.0
    return math.sqrt(most_variance(noise, manifest.cohort)) / divisor


def _divisor(manifest: Manifest) -> float | None:
    """Integer units of a sum per real unit of the direction that the server takes.

    None: no mean is taken. Statistics and evaluations divide by no constant.
    """
    training = manifest.training
    if training is None or not training.denominator > 0:
        return None
    steps = public_steps(training) if algorithm_of(manifest).normalises_steps else 1.0
    return manifest.segments[0].scale * training.denominator / steps
