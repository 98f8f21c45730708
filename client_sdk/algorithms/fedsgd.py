"""FedSGD under distributed example-level privacy (mode C): one masked sum per global step.

The device draws a secret Poisson batch, clips every example's gradient to the manifest's bound in
exact integers, and adds them up; its noise share is added where the total is encoded. The server
steps against the sum divided by a public constant, so the sum is all that is ever opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client_sdk.algorithms.work import Work
from client_sdk.errors import ContributionError
from dp.mechanisms import ExampleSum
from dp.sampling import poisson_batch
from secagg.manifest import ExamplePrivacy, Manifest

OVERRUN_LOG2_MAX = -60  # of the probability that a batch is larger than examples_max


def contribute(manifest: Manifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"gradient": int64[d]}``: the sum of clipped gradients in integer units.

    It is the gradient, not the step: the server subtracts. Every device runs with the manifest's
    sampling rate whatever its size.

    Raises:
        ContributionError: ``privacy-mode``, ``dataset-too-large``, ``training-deadline``,
            ``training-stopped``.
    """
    privacy = manifest.example_privacy
    if privacy is None or privacy.mode != "distributed":
        raise ContributionError(
            "privacy-mode",
            "FedSGD sums per-example gradients under distributed example-level privacy.",
            expected="distributed",
            found=None if privacy is None else privacy.mode,
        )
    check_size(len(work.rows), privacy)
    batch = poisson_batch(len(work.rows), privacy.sampling_rate, work.random_bytes)
    total = ExampleSum(manifest, work.random_bytes)
    with work.gradients() as gradients:
        for rows in work.micro_batches(batch[: privacy.examples_max]):
            gradients.run(rows)
            for gradient in gradients.flat().numpy():
                total.add(gradient)
    work.check_time()
    return {"gradient": np.asarray(total.total, dtype=np.int64)}


def check_size(examples: int, privacy: ExamplePrivacy) -> None:
    """Refuse data so large that a batch could exceed the ring's public bound on it.

    Cutting a batch short lets one example push out another, which doubles the sensitivity. So the
    cut is made improbable instead: the Chernoff bound on a binomial tail (Hoeffding 1963, theorem
    1) must be below 2^-60, which is far below what delta counts.

    Raises:
        ContributionError: ``dataset-too-large``.
    """
    if overrun_log2(examples, privacy.sampling_rate, privacy.examples_max) > OVERRUN_LOG2_MAX:
        raise ContributionError(
            "dataset-too-large",
            f"A Poisson batch at rate {privacy.sampling_rate} of this many examples could exceed "
            "the task's public bound on a batch.",
            expected=f"at most {privacy.examples_max} examples in a batch",
            found=f"{examples} examples",
            remedy=f"Pass at most {examples_limit(privacy)} examples, chosen once.",
        )


def overrun_log2(examples: int, rate: float, examples_max: int) -> float:
    """log2 of a bound on P[Binomial(examples, rate) > examples_max]; -inf where impossible."""
    if examples <= examples_max:
        return -math.inf
    share = (examples_max + 1) / examples
    if share <= rate or rate >= 1.0:
        return 0.0
    divergence = share * math.log2(share / rate)
    if share < 1.0:
        divergence += (1.0 - share) * math.log2((1.0 - share) / (1.0 - rate))
    return -examples * divergence


def examples_limit(privacy: ExamplePrivacy) -> int:
    """The largest data set that :func:`check_size` admits."""
    low, high = privacy.examples_max, math.ceil(privacy.examples_max / privacy.sampling_rate) + 1
    while high - low > 1:
        middle = (low + high) // 2
        bound = overrun_log2(middle, privacy.sampling_rate, privacy.examples_max)
        low, high = (middle, high) if bound <= OVERRUN_LOG2_MAX else (low, middle)
    return low
