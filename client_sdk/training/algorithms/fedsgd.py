"""FedSGD under distributed example-level privacy: one masked sum per global step.

The device draws a secret Poisson batch, clips every example's gradient to the manifest's bound in
exact integers, and adds them up; its noise share is added where the total is encoded. The server
steps against the sum divided by a public constant, so the sum is all that is ever unmasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.errors import TaskRefusal
from client_sdk.training.algorithms.work import Work
from dp.example_sum import ExampleSum
from dp.noise.sampling import examples_held_max, poisson_batch
from secagg.manifest import ExamplePrivacy, TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"gradient": int64[d]}``: the sum of clipped gradients in integer units.

    Where the clip adapts, gradients are scaled for the version's clip first, and ``below``
    (int64[1]) counts those that it does not shorten.

    It is the gradient, not the step: the server subtracts. Every device samples at the manifest's
    rate whatever its size.

    Raises:
        TaskRefusal: ``privacy-mode``.
        ContributionError: ``training-deadline``, ``training-stopped``.
    """
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "distributed":
        raise TaskRefusal(
            "privacy-mode",
            "FedSGD sums per-example gradients under distributed example-level privacy.",
            expected="distributed",
            found=None if privacy is None else privacy.mode,
        )
    batch = secret_batch(privacy, work)
    total = ExampleSum(manifest, work.random_bytes, work.clip)
    with work.gradients() as gradients:
        for gradient in work.unit_gradients(gradients, batch):
            total.add(gradient)
    work.check_time()
    return total.values()


def secret_batch(privacy: ExamplePrivacy, work: Work) -> NDArray[np.int64]:
    """Places of a secret Poisson batch (distributed); with a schedule the whole of a public part.

    The ring has room for ``examples_max`` examples. A device that holds so many that a batch could
    plausibly be larger uses only its first ``examples_held_max``; in the improbable larger batch
    the last ones are left out. Both rules go by an example's place, so emptying one place (the
    adjacency of the report) never lets another example in, and the sensitivity stays one clip.
    """
    held = work.places[: examples_held_max(privacy.examples_max, privacy.sampling_rate)]
    drawn = poisson_batch(len(held), privacy.sampling_rate, work.random_bytes)
    return held[drawn[: privacy.examples_max]]
