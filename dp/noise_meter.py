"""The noise meter: what a released sum itself says about the noise in it.

Y = X + N in integer units, X the sum of the clipped contributions with norm at most B, N the noise
with variance V on each of d coordinates, independent of X. Then
    |Y|^2 = |X|^2 + 2 <X, N> + |N|^2,  |<X, N>| <= t |X| sqrt(V),  | |N|^2 - d V | <= s d V
but for a negligible probability (t = 8, s = t sqrt(2 / d) + 3 t^2 / d for the nearly Gaussian
Skellam). Bounding |X| from above gives a lower end for V, minimising over |X| an upper end.

Noise that was taken off but had never been added stands in Y with the other sign, as E. It looks
like noise and protects nothing, for its seed is open. The scalar product of all that was taken off
with Y is then about -|E|^2; for honest devices it stays within t |Y| times the root of the variance
taken off. What goes beyond that does not count as energy.

The upper end holds whatever the devices sent; the lower end only if they kept to the clip, for a
vector that is too long looks like noise. An honest release can have a low lower end: only an upper
end below the guaranteed variance shows that noise is missing. A sum that is refused for it has
been seen all the same, and stays charged.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from dp.accounting.statements import ReleaseFacts, guaranteed_variance
from dp.noise.grid import examples_factor, l2_squared_units
from dp.noise.removable import Removed
from secagg.manifest import Manifest
from secagg.ring import Lanes, centred, split_checks

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SIGMAS = 8.0


class NoiseInterval(msgspec.Struct, frozen=True, kw_only=True):
    """Variance per coordinate, integer units squared: measured ends and what is guaranteed."""

    low: int
    high: int
    guaranteed: int

    @property
    def missing(self) -> bool:
        """Whether noise is missing for certain."""
        return self.high < self.guaranteed


def noise_interval(
    manifest: Manifest,
    unmasked_payload: Lanes,
    facts: ReleaseFacts,
    removed: Removed | None = None,
) -> NoiseInterval | None:
    """Measure an unmasked sum; None for a task without noise in the ring, or too short a vector.

    Args:
        unmasked_payload: lanes with check coordinates, as :func:`dp.encoding.decode` takes them.
        removed: what was taken off them before, if anything.
    """
    if manifest.noise is None:
        return None
    data = centred(
        split_checks(unmasked_payload, manifest.encoding.slice_length)[1],
        manifest.encoding.ring_bits,
    )
    length = math.sqrt(l2_squared_units(manifest.segments)) * examples_factor(manifest)
    ends = _ends(data, length * facts.survivors, removed)
    if ends is None:
        return None
    return NoiseInterval(
        low=math.floor(ends[0]),
        high=math.ceil(ends[1]),
        guaranteed=guaranteed_variance(manifest, facts),
    )


def _ends(
    data: NDArray[np.int64], bound: float, removed: Removed | None
) -> tuple[float, float] | None:
    length = len(data)
    spread = _SIGMAS * math.sqrt(2 / length) + 3 * _SIGMAS**2 / length
    if spread >= 0.5:
        return None
    floats = data.astype(np.float64)
    energy = float(floats @ floats)
    if removed is not None:
        by_chance = _SIGMAS * math.sqrt(removed.variance * energy)
        energy = max(0.0, energy + min(0.0, removed.product + by_chance))
    # |Y|^2 >= |N|^2 - t^2 V, whatever |X| is.
    high = energy / (length * (1 - spread) - _SIGMAS**2)
    # |Y|^2 <= B^2 + 2 t B sqrt(V) + (1 + s) d V: the smallest V that explains the energy.
    a, b, c = length * (1 + spread), 2 * _SIGMAS * bound, bound * bound - energy
    low = 0.0
    if c < 0:
        low = ((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)) ** 2
    return low, high
