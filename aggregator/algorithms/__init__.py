"""Server halves of the federated algorithms: from an opened sum to the next global vector.

Everything here is post-processing of the sum: it costs no privacy. Vectors are float32 as stored;
arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
from dp.contracts.known_noise import mean_variance
from dp.contracts.optimisers import NAMED_AFTER
from dp.records import ClipMove
from secagg.errors import ConfigurationError, SecaggError
from secagg.manifest import Manifest

Sums = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Step:
    """``metrics``: what the sum says besides the vector, e.g. ``loss``.

    ``optimiser``: the next state; SCAFFOLD's ``control`` and an adaptive ``clip`` also go to
    devices, with the vector. ``clip``: how an adaptive clip moved.
    """

    vector: NDArray[np.float32]
    optimiser: OptimiserState
    metrics: dict[str, float] = field(default_factory=dict)
    clip: ClipMove | None = None


# algorithm -> (manifest, sums) -> (direction in which the vector moves, metrics)
DIRECTIONS: dict[str, Callable[[Manifest, Sums], tuple[NDArray[np.float64], dict[str, float]]]] = {
    "fedavg": averaged_delta,
    "fednova": rescaled,
    "fedprox": averaged_delta,  # the proximal term is the device's; the server half is FedAvg's
    **dict.fromkeys(NAMED_AFTER, averaged_delta),
    "fedsgd": descent,
}


def server_step(
    manifest: Manifest,
    vector: NDArray[np.float32],
    optimiser: OptimiserState,
    sums: Sums,
    version: int = 0,
    survivors: int = 0,
    masking_set: int = 0,
    lag: int = 0,
) -> Step:
    """The next version from the current one and the decoded sums by segment name.

    ``version``: of ``vector``; phases and public seeds of an adapter's form follow from it.
    ``survivors``: contributors to the sums, ``masking_set``: devices that owed a vector (0: not
    known); the noise of their shares follows from them.
    ``lag``: versions between the newest model that they trained on and ``vector`` (FedBuff).

    Raises:
        ConfigurationError: ``algorithm-unknown``, ``optimiser-unknown``.
        LocalProtocolError: ``survivors-missing``: an adaptive optimiser needs them under noise.
        SecaggError: ``update-not-finite``: the sum would destroy the model.
    """
    if manifest.algorithm == "sum":
        return Step(concatenated(manifest, sums), {})
    if manifest.algorithm == "evaluation":
        return Step(vector, optimiser, measured(manifest, sums))
    halves = {*DIRECTIONS, "fedbuff", "scaffold", "zeroth-order"}
    if manifest.algorithm not in halves or manifest.training is None:
        raise ConfigurationError(
            "algorithm-unknown",
            "This aggregator has no server half for the algorithm.",
            expected=["evaluation", "sum", *sorted(halves)],
            found=manifest.algorithm,
        )
    kept: OptimiserState = {}
    sums, moved_clip = real_sums(manifest, sums, optimiser)
    if moved_clip is not None:
        kept["clip"] = np.array([moved_clip.clip])
    if manifest.algorithm == "zeroth-order":
        direction, metrics = expanded(manifest, sums, len(vector), version)
    elif manifest.algorithm == "fedbuff":
        direction, metrics = buffered(manifest, sums, survivors, lag)
    elif manifest.algorithm == "scaffold":
        control = optimiser.get("control", np.zeros(len(vector)))
        direction, kept["control"], metrics = controlled(manifest, sums, control, survivors)
    else:
        direction, metrics = DIRECTIONS[manifest.algorithm](manifest, sums)
    form = FORMS.get("" if manifest.adapter is None else manifest.adapter.kind)
    if form is None:
        known = 0.0
        if is_adaptive(manifest.training):
            known = mean_variance(manifest, survivors, masking_set)
        moved, state = apply(
            manifest.training, vector.astype(np.float64), optimiser, direction, known
        )
    else:
        moved, found = form(manifest, vector.astype(np.float64), direction, version)
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
