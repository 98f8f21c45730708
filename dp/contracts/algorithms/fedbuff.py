"""FedBuff (Nguyen et al., AISTATS 2022, algorithm 1): buffers of updates that began from different
versions of the model.

    x <- x + eta_g (1/K) sum over the buffer of s(tau_k) delta_k,    s(tau) = 1 / sqrt(1 + tau)

The masks of a cohort cancel only inside it, so a buffer is a cohort of devices that have finished.
It admits models up to ``versions_back`` versions old, each released by the ledger and with at least
``model_min`` devices behind it; tau counts the versions between a device's model and the newest
that the cohort admits.

A device multiplies by s after its update is clipped: before, a long update would be scaled into the
clip and count in full, however stale. s <= 1, so the sensitivity stays the clip. K is the number of
contributors, which is public.

Cohorts of whoever is ready earn no amplification by sampling: each release is counted as it is.
"""

from __future__ import annotations

import math

from dp.contracts.algorithms.averaging import has_privacy, uniform_segments
from dp.contracts.algorithms.declaration import Algorithm, TrainingAlgorithm
from dp.contracts.algorithms.local_steps import check_local
from dp.contracts.rules import adapter_length, check_segments, in_range, refuse
from dp.contracts.spec import SegmentSpec, TaskSpec
from secagg.limits import VERSIONS_BACK_MAX
from secagg.manifest import Manifest, ServerOptimiser, Training, TrainingManifest

VERSIONS_BACK = 4  # of a task that does not say otherwise
HONEST_BEHIND = 2  # devices behind each model that do not work with the aggregator
_OPTIMISERS: frozenset[ServerOptimiser] = frozenset(("sgd", "momentum"))


def staleness_weight(staleness: int) -> float:
    """s(tau) of the paper's experiments, for tau >= 0 versions; in ]0, 1]."""
    return 1 / math.sqrt(1 + staleness)


def versions_of(spec: TaskSpec, algorithm: Algorithm) -> tuple[int, int]:
    """(``versions_back``, ``model_min``) of the spec, or the algorithm's defaults."""
    cohort, buffered = spec.cohort, algorithm.weighs_staleness
    back, behind = cohort.versions_back, cohort.model_min
    if back is None:
        back = VERSIONS_BACK if buffered else 0
    if behind is None:
        fewest = HONEST_BEHIND + cohort.corrupt
        behind = max(fewest, cohort.survivors_min // 2) if buffered else 0
    return back, behind


def check_versions(manifest: Manifest, algorithm: Algorithm) -> None:
    """Only a buffer admits more than one version.

    Raises:
        ConfigurationError: ``versions-without-buffer``, ``versions-back``, ``model-min``.
    """
    rules = manifest.cohort
    if algorithm.weighs_staleness:
        in_range("versions_back", rules.versions_back, 1, VERSIONS_BACK_MAX, reason="versions-back")
        fewest = HONEST_BEHIND + rules.corrupt_max
        in_range("model_min", rules.model_min, fewest, rules.survivors_min, reason="model-min")
    elif (rules.versions_back, rules.model_min) != (0, 0):
        refuse(
            "versions-without-buffer",
            f"All devices of a {manifest.algorithm} cohort train on one version.",
            expected="versions_back = 0 and model_min = 0",
            found=(rules.versions_back, rules.model_min),
            remedy="Use the algorithm 'fedbuff'.",
        )


class FedBuff(TrainingAlgorithm):
    default_privacy = "local"
    modes = frozenset(("local", "none"))
    optimisers = _OPTIMISERS
    weighs_staleness = True
    schedules = True

    def segments(self, spec: TaskSpec, length: int, *, noisy: bool) -> tuple[SegmentSpec, ...]:
        return uniform_segments(spec, length, noisy)

    def denominator(self, spec: TaskSpec, *, noisy: bool) -> float:
        return 0.0  # the contributors, whose number is public

    def check_training(self, manifest: TrainingManifest) -> None:
        length = adapter_length(manifest)
        training = manifest.training
        plain = [] if has_privacy(manifest) else [("loss", 1)]
        check_segments(manifest, [("delta", length), *plain])
        _check_terms(training)
        check_local(manifest)
        if manifest.report_slot_s != 0:
            refuse(
                "slot-with-buffer",
                "A buffer closes when enough devices are ready.",
                expected="report_slot_s = 0",
                found=manifest.report_slot_s,
            )


def _check_terms(training: Training) -> None:
    if training.weight_unit != 0 or training.denominator != 0:
        refuse(
            "weights-with-buffer",
            "An update's weight in a buffer is its staleness weight.",
            expected="weight_unit = 0 and denominator = 0",
            found=(training.weight_unit, training.denominator),
            remedy="Use uniform weights; the sum is divided by its contributors.",
        )
    if training.proximal_mu != 0:
        refuse(
            "proximal-without-fedprox",
            "A proximal term makes it FedProx.",
            expected="proximal_mu = 0",
            found=training.proximal_mu,
            remedy="Use the algorithm 'fedprox'.",
        )
    if training.server_optimiser not in _OPTIMISERS:
        refuse(
            "optimiser-with-buffer",
            "Second moments would mix updates of several ages and weights.",
            expected=" or ".join(sorted(_OPTIMISERS, reverse=True)),
            found=training.server_optimiser,
        )
