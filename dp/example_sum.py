"""The exact sum of clipped example gradients, and the noise of one local step on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dp.accounting.statements import local_step
from dp.errors import MechanismError
from dp.noise.adaptive_clip import BELOW, checked_clip, main_length, scaled
from dp.noise.grid import clip_units, scale_for
from dp.noise.quantisation import to_units
from dp.noise.sampling import skellam
from dp.noise.stream import RandomBytes
from secagg.manifest import ExamplePrivacy, Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ExampleSum:
    """The sum of integer-clipped example gradients: sensitivity exactly ``clip_units``.

    With distributed noise its ``total`` is what :func:`dp.encoding.encode` takes as
    ``values["gradient"]``; with local noise :func:`noisy_total` makes a DP-SGD step. Where the
    clip adapts, ``below`` is the sum of b - gamma over the same examples, in units, each within the
    ``clip_units`` of its segment.

    Args:
        manifest: with example-level privacy.
        random_bytes: cryptographically secure; asked for 32 bytes per example.
        clip: of the model's version, where the clip adapts.

    Raises:
        MechanismError: ``privacy-missing``; ``clip-missing``, ``clip-out-of-range`` where the clip
            adapts.
    """

    def __init__(
        self, manifest: Manifest, random_bytes: RandomBytes, clip: float | None = None
    ) -> None:
        privacy = manifest.example_privacy
        if privacy is None:
            raise MechanismError(
                "privacy-missing", "Without example-level privacy no example is clipped."
            )
        self._random_bytes = random_bytes
        self._scale, self._bound = _example_grid(manifest, privacy)
        self._examples_max = privacy.examples_max if privacy.mode == "distributed" else 1 << 31
        self._manifest, self._clip = manifest, clip
        if manifest.clip_adaptation is not None:
            if clip is None:
                raise MechanismError("clip-missing", "The clip of the model's version is missing.")
            checked_clip(manifest, clip)
        self.count = 0
        self.below = 0
        self.total: NDArray[np.int64] = np.zeros(main_length(manifest), dtype=np.int64)

    def add(self, gradient: NDArray[Any]) -> None:
        """Quantise, clip and add one example's gradient, float[d].

        A gradient that is not finite counts as zero. Beyond ``examples_max`` nothing is added: a
        batch that long is an event whose probability delta pays for (``examples_held_max``).
        """
        if gradient.shape != self.total.shape:
            raise MechanismError(
                "segment-shape",
                "The gradient has the wrong shape.",
                expected=self.total.shape,
                found=gradient.shape,
            )
        self.count += 1
        if self.count > self._examples_max or not np.isfinite(gradient).all():
            return
        if self._manifest.clip_adaptation is not None and self._clip is not None:
            found = scaled(self._manifest, gradient, self._clip)
            if found is None:
                return
            gradient, below = found
            self.below += below
        self.total += to_units(gradient, self._scale, self._bound, self._random_bytes)

    def values(self, name: str = "gradient") -> dict[str, NDArray[np.int64]]:
        """What a device contributes with distributed noise: the total as ``name``, and ``below``,
        if any."""
        if self._manifest.clip_adaptation is None:
            return {name: self.total}
        return {name: self.total, BELOW: np.array([self.below], dtype=np.int64)}


def _example_grid(manifest: Manifest, privacy: ExamplePrivacy) -> tuple[int, int]:
    if privacy.mode == "distributed":
        segment = manifest.segments[0]
        return segment.scale, segment.clip_units
    scale = scale_for(privacy.clip, manifest.data_length, noisy=True)
    return scale, clip_units(privacy.clip, scale)


def noisy_total(
    manifest: Manifest, total: NDArray[np.int64], random_bytes: RandomBytes
) -> NDArray[np.float64]:
    """Local noise: the sum of one local step's clipped gradients plus exact Skellam noise.

    Args:
        total: an :class:`ExampleSum`'s, int64[d].

    Returns:
        float64[d], real units; standard deviation noise_multiplier * clip.
    """
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "local":
        raise MechanismError("privacy-mode", "Local noise belongs to privacy = 'local'.")
    scale, _ = _example_grid(manifest, privacy)
    return (total + skellam(len(total), local_step(manifest).variance, random_bytes)) / scale
