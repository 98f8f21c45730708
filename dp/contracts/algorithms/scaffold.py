"""SCAFFOLD, option II (Karimireddy et al., ICML 2020, algorithm 1): local steps without drift.

    device   y <- y - eta (g - c_k + c), K times from x;   c_k <- c_k - c + (x - y) / (K eta)
    server   x <- x + eta_g (1/m) sum of (y - x);          c <- c + (1/N) sum of (change of c_k)

With one K eta for all devices the change of c_k is -c - (y - x) / (K eta), so the sum of the
changes follows from the sum of y - x: the sum holds nothing else, and what an update is clipped
to is all that there is to account for. m is the number of contributors, N the enrolled population.

Why each exclusion:

- unequal steps: the sum of (y - x) / (K eta) would be another sum;
- an adaptive or momentum optimiser on either side, a proximal pull, weights: (x - y) / (K eta) is
  then no mean of gradients, or c no mean of the c_k;
- noise in the ring (device level): c - mean(c_k) never shrinks, so the noise of every release
  would stay in c for good, while a device cannot take its share into c_k: its next contribution
  would show the share, which also hides the others. Noise *before* the sum (local) is in both;
- adapter forms with re-initialised or alternating factors: ``dp.contracts.forms``.

Example-level privacy on the device (local) covers c_k too: it is a function of gradients that
were clipped and noised, so using it again is post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dp.contracts.algorithms.averaging import uniform_segments
from dp.contracts.algorithms.declaration import TrainingAlgorithm
from dp.contracts.algorithms.local_steps import check_local
from dp.contracts.rules import adapter_length, check_segments, in_range, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.manifest import Training, TrainingManifest

POPULATION_MAX = 1 << 40


def control_step(training: Training) -> float:
    """K eta: what a change of the vector is divided by to be a mean of gradients."""
    return training.local_steps * training.local_learning_rate


class Scaffold(TrainingAlgorithm):
    default_privacy = "local"
    modes = frozenset(("local", "none"))
    optimisers = frozenset(("sgd",))
    keeps_control = True
    schedules = True

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        return {"population": population}

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return uniform_segments(spec, length, noisy)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return 0.0  # the contributors, whose number is public

    def check_training(self, manifest: TrainingManifest) -> None:
        length = adapter_length(manifest)
        training = manifest.training
        if manifest.device_privacy is not None:
            refuse(
                "control-with-device-noise",
                "The noise of every sum would stay in the server's control variate for good.",
                expected="device_noise_multiplier = 0",
                found=manifest.device_privacy.noise_multiplier,
                remedy="Use privacy = 'local', or fedavg for device-level privacy.",
            )
        plain = [] if manifest.example_privacy else [("loss", 1)]
        check_segments(manifest, [("delta", length), *plain])
        _check_terms(training)
        check_local(manifest)
        in_range(
            "population",
            training.population,
            manifest.cohort.size_max,
            POPULATION_MAX,
            reason="population",
        )


def _check_terms(training: Training) -> None:
    if training.local_optimiser != "sgd" or training.local_momentum != 0:
        refuse(
            "local-optimiser-with-control",
            "With an adaptive or momentum optimiser (x - y) / (K eta) is not a mean of gradients.",
            expected=("sgd", 0.0),
            found=(training.local_optimiser, training.local_momentum),
            remedy="Use plain SGD, or fedavg with this optimiser.",
        )
    if training.local_epochs != 0:
        refuse(
            "epochs-with-control",
            "One sum is enough only if all devices take the same number of steps.",
            expected="local_epochs = 0",
            found=training.local_epochs,
            remedy="Let every device take local_steps, or use fednova.",
        )
    if training.proximal_mu != 0:
        refuse(
            "proximal-with-control",
            "With a proximal pull the change of y is not a mean of gradients.",
            expected="proximal_mu = 0",
            found=training.proximal_mu,
        )
    if training.weight_unit != 0 or training.denominator != 0:
        refuse(
            "weights-with-control",
            "The server's control variate is the plain mean of the devices'.",
            expected="weight_unit = 0 and denominator = 0",
            found=(training.weight_unit, training.denominator),
            remedy="Use uniform weights; the sum is divided by its contributors.",
        )
    if training.server_optimiser != "sgd":
        refuse(
            "optimiser-with-control",
            "Control variates correct plain steps.",
            expected="server_optimiser = 'sgd'",
            found=training.server_optimiser,
        )
