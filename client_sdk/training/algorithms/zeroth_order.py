"""The device half of zeroth order: slopes of the loss along the manifest's directions.

No backward pass and no gradient: the memory of inference (MeZO; Malladi et al. 2023). What is sent
are K numbers, the adapter's length plays no part in traffic or noise.

A slope is a difference of two losses over a small distance, which makes the last bits of a float
large: where examples are protected each row is passed alone, so that none moves another's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client_sdk.errors import ContributionError
from client_sdk.training.algorithms.fedsgd import secret_batch
from client_sdk.training.algorithms.work import Work, weighted
from client_sdk.training.coins import without_coins
from client_sdk.training.examples import Row
from client_sdk.training.gradients import not_finite, sequence_losses
from dp.contracts.algorithms.registry import algorithm_of
from dp.example_sum import ExampleSum
from dp.noise.stream import BitStream
from secagg.lora.directions import direction
from secagg.manifest import Manifest, TrainingManifest


def contribute(manifest: TrainingManifest, work: Work) -> Mapping[str, NDArray[Any]]:
    """``{"gradient": [K]}``: with distributed noise the int64 sum of examples' clipped slopes, else
    the mean.

    Without any privacy the mean is multiplied by the hidden ``weight``, and ``weight`` and ``loss``
    (at the global model) are sent beside it.

    Raises:
        ContributionError: ``training-diverged``, ``training-deadline``, ``training-stopped``.
    """
    training, privacy = manifest.training, manifest.example_privacy
    if privacy is not None:
        batch = secret_batch(privacy, work)
        slopes, _ = _slopes(manifest, work, batch)
        kept = [row for row in work.present(batch) if row.index not in work.left_out]
        total = ExampleSum(manifest, work.random_bytes)
        for slope in work.unit_sums(zip(kept, slopes, strict=True)):
            total.add(slope)
        return {"gradient": total.total}
    usable = work.usable
    keys = BitStream(work.random_bytes).uint64(len(usable))
    batch = usable[np.argsort(keys)[: training.batch_size]]
    slopes, losses = _slopes(manifest, work, batch)
    if len(batch) and not len(slopes):
        raise ContributionError(
            "training-diverged", "The model's losses are not finite near the global model."
        )
    count = max(len(slopes), 1)
    return weighted(manifest, work, slopes.sum(0) / count, losses.sum() / count, "gradient")


def _slopes(
    manifest: TrainingManifest, work: Work, batch: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Central differences per example, float64[kept, K], and the losses at the centre.

    Kept are the examples of which every loss could be computed and is finite; the others are left
    out.
    """
    training, seed = manifest.training, manifest.adapter.seed
    start = work.adapted.flat()
    rows = work.present(batch)
    slopes = np.zeros((len(rows), training.directions))
    work.passes.expect(1 + 2 * training.directions)
    centre = _losses(manifest, work, batch)
    for number in range(training.directions if rows else 0):
        signs = direction(seed, work.version, number, work.adapted.length)
        step = training.perturbation * torch.from_numpy(signs).double()
        work.adapted.put(start + step)
        ahead = _losses(manifest, work, batch)
        work.adapted.put(start - step)
        slopes[:, number] = (ahead - _losses(manifest, work, batch)) / (2 * training.perturbation)
    work.adapted.put(start)
    kept = np.isfinite(slopes).all(1) & np.isfinite(centre)
    for row, good in zip(rows, kept, strict=True):
        if not good and row.index not in work.left_out:
            work.leave_out(row, not_finite())
    return slopes[kept], centre[kept]


def _losses(
    manifest: TrainingManifest, work: Work, batch: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Loss of each row of :meth:`Work.present`; NaN of one that raises."""
    model = work.adapted.model

    def compute(rows: Sequence[Row]) -> NDArray[np.float64]:
        return sequence_losses(model, rows, work.pad_token).double().cpu().numpy()

    found: dict[int, float] = {}
    with without_coins(model), torch.inference_mode():
        for rows in work.micro_batches(batch, alone=passes_alone(manifest)):
            for part, losses in work.apart(rows, compute):
                found |= zip(map(id, part), losses.tolist(), strict=True)
    return np.array([found.get(id(row), np.nan) for row in work.present(batch)])


def passes_alone(manifest: Manifest) -> bool:
    """Whether each row has a pass of its own: where examples are what the noise protects."""
    return algorithm_of(manifest).has_directions and manifest.example_privacy is not None
