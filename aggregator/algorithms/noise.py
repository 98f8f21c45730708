"""How much noise of known variance a released mean carries."""

from __future__ import annotations

from dp.contracts.fednova import public_steps
from dp.removable import kept_share
from secagg.errors import LocalProtocolError
from secagg.manifest import Manifest


def mean_variance(manifest: Manifest, survivors: int, masking_set: int = 0) -> float:
    """Variance per coordinate of the survivors' noise shares in the mean, real units squared.

    Sum over the survivors of what stays of a share, over (scale * public denominator)^2, and times
    FedNova's tau_eff^2. The rotation
    of mode B is orthonormal and changes nothing. 0 without noise in the ring. Stochastic rounding
    (at most 1/4 unit squared per device) is left out: it is under 0.1 % of a noise worth the name.

    Raises:
        LocalProtocolError: ``survivors-missing``.
    """
    if manifest.noise is None or manifest.training is None:
        return 0.0
    removable = bool(manifest.noise.removable_drops)
    if survivors < 1 or (removable and masking_set < survivors):
        raise LocalProtocolError(
            "survivors-missing",
            "The noise in a sum follows from the number of its contributors.",
            expected="survivors >= 1, of a masking set where parts of the noise are removable",
            found=(survivors, masking_set),
        )
    divisor = manifest.segments[0].scale * manifest.training.denominator
    factor = public_steps(manifest.training) if manifest.algorithm == "fednova" else 1.0
    share = manifest.noise.share_variance
    if removable:
        share = kept_share(manifest.noise, manifest.cohort, masking_set, survivors)
    return share * survivors * (factor / divisor) ** 2
