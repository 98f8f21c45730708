"""FedNova (Wang et al. 2020): deltas per step, so that unequal local work does not bend the goal.

A device divides its change by |a|_1 (``dp.contracts.algorithms.local_steps``) *before* it is
clipped: clipped after, a device of many steps would be cut more than one of few. Without noise the
sums of w d, w and
w |a|_1 give the mean and tau_eff = sum w |a|_1 / sum w. With noise there is the sum of d alone, and
tau_eff is the public |a|_1 of ``local_steps``; sensitivity is the clip of d.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dp.contracts.algorithms.averaging import Averaging, check_averaging
from dp.contracts.algorithms.declaration import AVERAGED_FORMS
from dp.contracts.algorithms.local_steps import STEPS_MAX, normaliser
from dp.contracts.rules import in_range, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec, TrainingSpec
from secagg.manifest import Training, TrainingManifest

NORMALISER = "normaliser"


class FedNova(Averaging):
    proximal_term = True
    normalises_steps = True
    forms = AVERAGED_FORMS

    def suggested(self, privacy: str, population: int) -> Mapping[str, Any]:
        """Without privacy one pass over a device's own examples, at most 8 steps."""
        return {"local_steps": 8, "local_epochs": 1} if privacy == "none" else {}

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        found = super().segments(spec, length, noisy=noisy)
        if noisy:
            return found
        return (*found, SegmentSpec(name=NORMALISER, length=1, clip=_most(spec)))

    def check_training(self, manifest: TrainingManifest) -> None:
        check_averaging(manifest, [(NORMALISER, 1)])
        training = manifest.training
        if training.local_optimiser != "sgd":
            refuse(
                "normaliser-undefined",
                "What a step of Adam counts for depends on the data, so nothing public undoes it.",
                expected="local_optimiser = 'sgd'",
                found=training.local_optimiser,
                remedy="Use sgd, with local_momentum if you like, or the algorithm 'fedavg'.",
            )
        _check_pull(training)
        named = {segment.name: segment for segment in manifest.segments}
        if NORMALISER in named:
            most = normaliser(training, training.local_steps)
            if not math.isclose(named[NORMALISER].clip, most, rel_tol=1e-9):
                refuse(
                    "clip-mismatch",
                    "The bound of the normaliser follows from the most steps that a device takes.",
                    expected=most,
                    found=named[NORMALISER].clip,
                )


def public_steps(training: Training) -> float:
    """tau_eff where only the sum of d is released: |a|_1 of ``local_steps`` steps."""
    return normaliser(training, training.local_steps)


def _most(spec: TaskSpec) -> float:
    terms = spec.training
    in_range("local_steps", terms.local_steps, 1, STEPS_MAX)
    in_range("local_momentum", terms.local_momentum, 0, 0.9999)
    _check_pull(terms)
    return normaliser(terms, terms.local_steps)


def _check_pull(training: Training | TrainingSpec) -> None:
    pull = training.local_learning_rate * training.proximal_mu
    if not 0 <= pull < 1:
        refuse(
            "pull-overshoots",
            "With so strong a pull a step lands beyond the global model, and weights change sign.",
            expected="0 <= local_learning_rate * proximal_mu < 1",
            found=pull,
        )
