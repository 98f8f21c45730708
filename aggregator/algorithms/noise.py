"""How much noise of known variance a released mean carries."""

from __future__ import annotations

from dp.contracts.fednova import public_steps
from secagg.errors import LocalProtocolError
from secagg.manifest import Manifest


def mean_variance(manifest: Manifest, survivors: int) -> float:
    """Variance per coordinate of the survivors' noise shares in the mean, real units squared.

    Sum over the survivors of ``share_variance``, over (scale * public denominator)^2, and times
    FedNova's tau_eff^2. The rotation
    of mode B is orthonormal and changes nothing. 0 without noise in the ring. Stochastic rounding
    (at most 1/4 unit squared per device) is left out: it is under 0.1 % of a noise worth the name.

    Raises:
        LocalProtocolError: ``survivors-missing``.
    """
    if manifest.noise is None or manifest.training is None:
        return 0.0
    if survivors < 1:
        raise LocalProtocolError(
            "survivors-missing",
            "The noise in a sum follows from the number of its contributors.",
            expected=">= 1",
            found=survivors,
        )
    divisor = manifest.segments[0].scale * manifest.training.denominator
    factor = public_steps(manifest.training) if manifest.algorithm == "fednova" else 1.0
    return manifest.noise.share_variance * survivors * (factor / divisor) ** 2
