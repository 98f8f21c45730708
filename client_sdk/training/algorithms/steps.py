"""A device's local steps between two releases, which the averaging algorithms share.

With ``local`` example privacy each step is DP-SGD: a secret Poisson batch, per-example
gradients (Opacus hooks), each clipped in exact integers, exact Skellam noise on their sum. Else a
step is plain SGD on a fresh random batch. What an algorithm adds to the gradient (FedProx's pull,
SCAFFOLD's control variates) is added *after* clip and noise: it depends on no example of this step,
and inside the loss per-example gradients would lose it without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client_sdk.errors import ContributionError, TaskRefusal
from client_sdk.training.algorithms.optimisers import LocalOptimiser
from client_sdk.training.algorithms.work import Work
from client_sdk.training.gradients import ExampleGradients
from dp.contracts.algorithms.local_steps import steps_of
from dp.contracts.algorithms.registry import algorithm_of
from dp.example_sum import ExampleSum, noisy_total
from dp.noise.sampling import poisson_batch
from dp.noise.stream import BitStream
from secagg.manifest import ExamplePrivacy, Training, TrainingManifest


def local_steps(
    manifest: TrainingManifest, work: Work, extra: Callable[[Tensor], Tensor] | None = None
) -> tuple[NDArray[np.float64], float]:
    """y <- y - eta (step + extra(y - x)) from the global x, as often as the manifest says.

    ``step`` is the local optimiser's answer to the gradient.

    Args:
        extra: from y - x, float64[d], to what is added to the step, float64[d].

    Returns:
        y - x, float64[d], and the mean of the batches' losses, each before its step (NaN with
        example privacy, where no loss is looked at).

    Raises:
        TaskRefusal: ``privacy-mode``.
        ContributionError: ``training-diverged``, ``training-deadline``,
            ``training-stopped``.
    """
    training = manifest.training
    privacy = manifest.example_privacy
    if privacy is not None and privacy.mode != "local":
        raise TaskRefusal(
            "privacy-mode",
            "Averaging clips and noises per local step, or not at all.",
            expected="local",
            found=privacy.mode,
        )
    start = work.adapted.flat()
    losses = []
    optimiser = LocalOptimiser(training, len(start))
    steps = steps_of(training, len(work.usable))
    work.passes.expect(steps)
    with work.gradients() as gradients:
        for _ in range(steps):
            work.check_time()
            if privacy is None:
                gradient, loss = _plain_step(work, gradients, training)
                losses.append(loss)
            else:
                gradient = _private_step(manifest, privacy, work, gradients, training)
            step = optimiser(gradient)
            if extra is not None:
                step = step + extra(work.adapted.flat() - start)
            work.adapted.add(-training.local_learning_rate * step)
    delta = (work.adapted.flat() - start).numpy()
    if not np.isfinite(delta).all():
        raise ContributionError(
            "training-diverged",
            "Local training ended in values that are not finite.",
            remedy="Lower the task's local learning rate.",
        )
    known = [loss for loss in losses if not math.isnan(loss)]
    return delta, float(np.mean(known)) if known else math.nan


def proximal(manifest: TrainingManifest) -> Callable[[Tensor], Tensor] | None:
    """The pull mu (y - x) of Li et al. 2020, equation 2; None for algorithms without one."""
    training = manifest.training
    if training.proximal_mu == 0 or not algorithm_of(manifest).proximal_term:
        return None
    return lambda moved: training.proximal_mu * moved


def _private_step(
    manifest: TrainingManifest,
    privacy: ExamplePrivacy,
    work: Work,
    gradients: ExampleGradients,
    training: Training,
) -> Tensor:
    """One DP-SGD gradient, float64[d]: (sum of clipped gradients + noise) / batch_size.

    The divisor is the manifest's, not the batch's own size or the data's, which are secret. An
    empty batch is a step of noise alone.
    """
    places = work.places
    batch = places[poisson_batch(len(places), privacy.sampling_rate, work.random_bytes)]
    total = ExampleSum(manifest, work.random_bytes)
    for gradient in work.unit_gradients(gradients, batch):
        total.add(gradient)
    noisy = noisy_total(manifest, total.total, work.random_bytes)
    return torch.from_numpy(noisy / training.batch_size)


def _plain_step(
    work: Work, gradients: ExampleGradients, training: Training
) -> tuple[Tensor, float]:
    """The mean gradient over a random batch without replacement, float64[d], and its mean loss.

    Means over the examples that were not left out; without any, zero and NaN.
    """
    usable = work.usable
    keys = BitStream(work.random_bytes).uint64(len(usable))
    batch = usable[np.argsort(keys)[: training.batch_size]]
    total = torch.zeros(work.adapted.length, dtype=torch.float64)
    loss, count = 0.0, 0
    for rows in work.micro_batches(batch):
        losses = gradients.run(rows)
        counted = torch.isfinite(losses)
        loss += float(losses[counted].double().sum())
        count += int(counted.sum())
        total += gradients.flat().double().sum(0)
    return total / max(count, 1), loss / count if count else math.nan
