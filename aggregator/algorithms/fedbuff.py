"""The server half of FedBuff (Nguyen et al., AISTATS 2022, algorithm 1): the mean of a buffer.

Devices have weighed their updates by s(tau) already, with tau counted from the newest model that
their cohort admits. Where that is itself older than the present one by ``lag`` versions, the mean
is weighed by s(lag) once more: exact for a buffer of one version, else a little less than
s(tau + lag).
"""

from __future__ import annotations

from aggregator.algorithms.optimisers import OptimiserState
from aggregator.algorithms.step import Direction, StepInput
from dp.contracts.algorithms.fedbuff import staleness_weight
from secagg.errors import LocalProtocolError
from secagg.manifest import TrainingManifest


def buffered(given: StepInput[TrainingManifest]) -> tuple[Direction, OptimiserState]:
    """s(lag) (1/K) sum of s(tau) delta, float64[d], and metrics; no state.

    K is the number of contributors, less those who are expected to have abstained.

    Raises:
        LocalProtocolError: ``survivors-missing``.
    """
    sums, survivors = given.sums, given.survivors
    if survivors < 1:
        raise LocalProtocolError(
            "survivors-missing",
            "FedBuff divides by the number of contributors.",
            expected=">= 1",
            found=survivors,
        )
    metrics = {"loss": float(sums["loss"][0]) / survivors} if "loss" in sums else {}
    device = given.manifest.device_privacy
    present = survivors * (device.participation_rate if device is not None else 1.0)
    return (staleness_weight(given.lag) * sums["delta"] / present, metrics), {}
