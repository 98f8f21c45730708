"""A release's step on a grid, so that the next model is a short delta (``secagg.model_delta``).

Under noise most of a float32's bits tell nothing, and cost every device a download. The service
therefore adopts the model whose step lies on a grid of a power of two, between a sixteenth and an
eighth of the root mean square of what moves. The error has at most 1/768 (0.13 %) of the step's
square; spread by the noise over several cells, it is no bias. Post-processing costs no privacy.

FedSVD and the exact product factor their product anew, which moves a factor further than a step
does: each tensor has a grid of its own there, eight times finer. A step without noise stays as it
is, and so does one of a short vector. Measured in docs/communication.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from secagg.lora.forms import size, stored
from secagg.manifest import Manifest

LENGTH_MIN = 512  # numbers; a shorter vector takes no more bytes than a request's head
_CELLS_PER_RMS, _CELLS_REFACTORED = 8, 64
_REFACTORED = ("fedsvd", "product")


def rounded(
    manifest: Manifest, before: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The next version that the service adopts; float32[d].

    Args:
        before, after: the present version, and the one that the sum leads to.
    """
    adapter = manifest.adapter
    noisy = manifest.noise is not None or manifest.example_privacy is not None
    if adapter is None or not noisy or len(after) < LENGTH_MIN:
        return after
    if adapter.kind not in _REFACTORED:
        return on_grid(before, after, _CELLS_PER_RMS)
    ends = np.cumsum([size((shape,)) for shape in stored(adapter)])[:-1]
    parts = zip(np.split(before, ends), np.split(after, ends), strict=True)
    return np.concatenate([on_grid(old, new, _CELLS_REFACTORED) for old, new in parts])


def on_grid(
    before: NDArray[np.float32], after: NDArray[np.float32], cells: int
) -> NDArray[np.float32]:
    """``after`` with its step rounded to at least ``cells`` cells per root mean square.

    What did not move stays, bit for bit.
    """
    step = after.astype(np.float64) - before
    moving = step[step != 0]
    if not len(moving):
        return after
    peak = float(np.abs(moving).max())
    rms = peak * math.sqrt(float(np.mean((moving / peak) ** 2)))
    cell = 2.0 ** math.floor(math.log2(rms / cells))
    units = np.rint(step / cell)
    return np.where(units == 0, before, before + cell * units).astype(np.float32)
