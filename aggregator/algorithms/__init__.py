"""Server halves of the federated algorithms: from an unmasked sum to the next global vector.

Everything here is post-processing of the sum: it costs no privacy. Vectors are float32 as stored;
arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from aggregator.algorithms.averaging import averaged_delta
from aggregator.algorithms.clipping import real_sums
from aggregator.algorithms.evaluation import measured
from aggregator.algorithms.fedbuff import buffered
from aggregator.algorithms.fednova import rescaled
from aggregator.algorithms.fedsgd import descent
from aggregator.algorithms.forms import FORMS
from aggregator.algorithms.optimisers import OptimiserState, apply, is_adaptive
from aggregator.algorithms.scaffold import controlled
from aggregator.algorithms.slopes import expanded
from aggregator.algorithms.statistics import concatenated
from aggregator.algorithms.step import Direction, Step, StepInput, Sums
from dp.contracts.known_noise import mean_variance
from dp.contracts.optimisers import NAMED_AFTER
from secagg.errors import ConfigurationError, SecaggError
from secagg.manifest import Manifest, TrainingManifest

__all__ = ["DIRECTIONS", "Step", "StepInput", "Sums", "server_step"]

# Algorithms without a vector, and those that leave it: they make a whole step of the sums.
_STATISTICS: dict[str, Callable[[StepInput[Manifest]], Step]] = {"sum": concatenated}
_MEASURES: dict[str, Callable[[StepInput[TrainingManifest]], Step]] = {"evaluation": measured}
# Algorithms whose direction follows from the sums alone.
DIRECTIONS: dict[str, Callable[[TrainingManifest, Sums], Direction]] = {
    "fedavg": averaged_delta,
    "fednova": rescaled,
    "fedprox": averaged_delta,  # the proximal term is the device's; the server half is FedAvg's
    **dict.fromkeys(NAMED_AFTER, averaged_delta),
    "fedsgd": descent,
}
# Algorithms that need more of the round, and may keep state of their own.
_WITH_STATE: dict[
    str, Callable[[StepInput[TrainingManifest]], tuple[Direction, OptimiserState]]
] = {
    "fedbuff": buffered,
    "scaffold": controlled,
    "zeroth-order": expanded,
}


def server_step(given: StepInput[Manifest]) -> Step:
    """The next version from the current one and the decoded sums.

    Raises:
        ConfigurationError: ``algorithm-unknown``, ``training-missing``, ``adapter-missing``,
            ``optimiser-unknown``.
        LocalProtocolError: ``survivors-missing``: an adaptive optimiser needs them under noise.
        SecaggError: ``update-not-finite``: the sum would destroy the model.
    """
    name = given.manifest.algorithm
    if name in _STATISTICS:
        return _STATISTICS[name](given)
    training = given.training()
    return _MEASURES[name](training) if name in _MEASURES else _moved(training)


def _moved(given: StepInput[TrainingManifest]) -> Step:
    manifest, vector = given.manifest, given.vector.astype(np.float64)
    sums, moved_clip = real_sums(manifest, given.sums, given.optimiser)
    (direction, metrics), kept = _direction(replace(given, sums=sums))
    if moved_clip is not None:
        kept = {**kept, "clip": np.array([moved_clip.clip])}
    form = FORMS.get(manifest.adapter.kind)
    if form is None:
        training, known = manifest.training, 0.0
        if is_adaptive(training):
            known = mean_variance(manifest, given.survivors, given.masking_set_size)
        moved, state = apply(training, vector, given.optimiser, direction, known)
    else:
        moved, found = form(manifest, vector, direction, given.version)
        state, metrics = {}, {**metrics, **found}
    with np.errstate(over="ignore"):
        after = moved.astype(np.float32)
    if not np.isfinite(after).all():
        raise SecaggError(
            "update-not-finite",
            "The step would make the global vector infinite or not a number.",
            remedy="Lower server_learning_rate.",
        )
    if moved_clip is not None:
        metrics = {**metrics, "clip": moved_clip.clip}
    return Step(after, {**state, **kept}, metrics, moved_clip)


def _direction(given: StepInput[TrainingManifest]) -> tuple[Direction, OptimiserState]:
    name = given.manifest.algorithm
    if name in DIRECTIONS:
        return DIRECTIONS[name](given.manifest, given.sums), {}
    if name in _WITH_STATE:
        return _WITH_STATE[name](given)
    raise ConfigurationError(
        "algorithm-unknown",
        "This aggregator has no server half for the algorithm.",
        expected=sorted({*_STATISTICS, *_MEASURES, *DIRECTIONS, *_WITH_STATE}),
        found=name,
    )
