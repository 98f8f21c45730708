"""What is allowed but should be known: plain words for the operator and the report."""

from __future__ import annotations

import math

import numpy as np

from dp.accounting.budget import cost_of
from dp.accounting.figures import limit_shown, shown_up
from dp.contracts.algorithms.local_steps import step_weights
from dp.contracts.algorithms.registry import algorithm_of
from dp.contracts.known_noise import mean_deviation
from dp.contracts.spec import BudgetSpec
from dp.contracts.units import delta_warnings
from dp.noise.adaptive_clip import below_deviation
from dp.noise.grid import examples_factor
from dp.noise.removable import most_variance
from secagg.graph.parameters import corrupt_floor
from secagg.manifest import Manifest

USELESS_RATIO = 10.0
QUANTILE_NOISE = 0.25  # a release then moves a clip at rest by a factor of about exp(0.25 eta)


def noise_over_clip(manifest: Manifest) -> float | None:
    """L2 norm of the noise in the mean over L2 bound of the mean: z sqrt(d) / n (device-level).

    Together with distributed noise the noise is for a device that sends ``examples_max`` examples,
    while the signal is that of the expected batch.
    """
    device, training = manifest.device_privacy, manifest.training
    if device is None:
        return None
    ratio = device.noise_multiplier * math.sqrt(manifest.data_length) / manifest.cohort.size_max
    examples = examples_factor(manifest)
    if examples > 1 and training is not None:
        ratio *= examples / max(1, training.batch_size)
    return ratio


def quantile_deviation(manifest: Manifest) -> float | None:
    """Standard deviation of the noise in the estimate that moves an adaptive clip, over the public
    denominator, for the most noise that a sum can carry; None: the clip is fixed."""
    if manifest.clip_adaptation is None or manifest.noise is None:
        return None
    return below_deviation(manifest, most_variance(manifest.noise, manifest.cohort))


def overshoot(manifest: Manifest) -> float | None:
    """The largest noise variance that a sum can carry over the least that is guaranteed."""
    noise = manifest.noise
    if noise is None:
        return None
    return most_variance(noise, manifest.cohort) / (noise.share_variance * noise.honest_min)


def local_noise_norm(manifest: Manifest) -> float | None:
    """Expected L2 norm of the noise in one device's update (local): lr C z |a|_2 sqrt(d) / batch.

    a: what each step counts for (sqrt(T) for T plain steps); per |a|_1 in FedNova. None for Adam.
    """
    example, training = manifest.example_privacy, manifest.training
    if example is None or example.mode != "local" or training is None:
        return None
    if training.local_optimiser == "adam":
        return None
    pull = training.local_learning_rate * training.proximal_mu
    weights = step_weights(training.local_steps, training.local_momentum, pull)
    gain = float(np.linalg.norm(weights)) * math.sqrt(manifest.data_length)
    if algorithm_of(manifest).normalises_steps:
        gain /= float(np.abs(weights).sum())
    noise = example.clip * example.noise_multiplier * gain
    return training.local_learning_rate * noise / training.batch_size


def warnings(manifest: Manifest) -> tuple[str, ...]:
    """Plain warnings about a valid manifest; empty where there are none."""
    found = [*delta_warnings(manifest)]
    ratio = noise_over_clip(manifest)
    if ratio is not None and ratio > USELESS_RATIO:
        found.append(
            f"Device-level noise is {ratio:.0f} times the signal that this cohort can send: "
            "the model will learn nothing. Use many more devices, a shorter vector, or "
            "example-level privacy alone."
        )
    extra = overshoot(manifest)
    if extra is not None and extra > 3:
        found.append(
            f"A sum may carry {extra:.1f} times the noise variance that is accounted for at the "
            "fewest survivors. Raise survivors_min if drop-outs are rarer."
        )
    norm = local_noise_norm(manifest)
    if norm is not None and norm > manifest.segments[0].clip:
        found.append(
            f"The noise of local training alone has a norm of about {norm:.1f}, more than the "
            f"update's clip of {manifest.segments[0].clip:g}: the signal shrinks with it. "
            + (
                "Raise update_clip; without device-level privacy it protects nothing."
                if manifest.device_privacy is None
                else "Use fewer or smaller local steps, or larger batches."
            )
        )
    example, training = manifest.example_privacy, manifest.training
    whole, way = "", ""
    if example is None and manifest.device_privacy is not None:
        whole, way = "device", "use example-level privacy too"
    elif example is not None and example.protects != "example":
        whole = example.protects
        way = f"count {whole}s in that policy"
    if whole:
        cost = cost_of("example", manifest, manifest.budget.releases_max)
        limit = manifest.budget.max_epsilon or BudgetSpec().max_epsilon
        if limit is not None and cost > limit:
            found.append(
                f"The task protects {whole}s; changing one example may cost epsilon "
                f"{shown_up(cost)}. Devices whose policy limits that (max_epsilon, units) to "
                f"{limit_shown(limit)} refuse it. Add noise, or {way}."
            )
    if example is not None and example.noise_multiplier < 0.5:
        found.append(
            f"A noise multiplier of {limit_shown(example.noise_multiplier)} protects little; below "
            "0.5 the stated epsilon is large."
        )
    if training is not None and training.local_steps > 1 and example is not None:
        found.append(
            f"Each release composes {training.local_steps} local steps of noise on every device."
        )
    algorithm = algorithm_of(manifest)
    if training is not None and training.local_epochs and not algorithm.normalises_steps:
        found.append(
            "Devices take unequal numbers of steps, and those with more pull the mean towards "
            "their own optimum. The algorithm 'fednova' undoes that."
        )
    deviation = mean_deviation(manifest)
    if training is not None and 0 < training.server_tau < deviation / 4:
        found.append(
            f"Noise of {deviation:.2g} in every coordinate of the mean meets server_tau = "
            f"{training.server_tau:g}: where there is no signal, steps are noise over server_tau. "
            "Leave server_tau out, or raise it to the noise."
        )
    if example is None and manifest.device_privacy is None:
        found.append(
            "No differential privacy: the sum itself, and every model trained from it, may reveal "
            "what single examples say."
        )
    if manifest.cohort.size_min < 5 and examples_factor(manifest) == 1:
        found.append("In a cohort this small, each participant knows much of the others' sum.")
    if manifest.report_slot_s == 0 and (example is not None or manifest.device_privacy is not None):
        batches = example is not None and example.mode == "distributed"
        found.append(
            "Devices report in when they are ready, so time may show what noise hides: every "
            "epsilon assumes that it does not"
            + (", and no amplified one is stated for examples." if batches else ".")
            + ("" if algorithm.weighs_staleness else " Set report_slot_s for public slots.")
        )
    spread = quantile_deviation(manifest)
    if spread is not None and spread > QUANTILE_NOISE:
        found.append(
            f"The noise in the quantile's estimate is {spread:.2g} of what all contributions "
            "together can move it: the clip will wander. Use more devices or examples, less noise, "
            "or a fixed clip."
        )
    rules = manifest.cohort
    fewest = corrupt_floor(rules.size_max)
    if rules.corrupt_max < fewest:
        found.append(
            f"The masks hold against {rules.corrupt_max} devices that work with the aggregator; in "
            f"a cohort of {rules.size_max} devices refuse fewer than {fewest} (corrupt-too-few), "
            "unless their policy says otherwise. "
            "Raise corrupt_max; larger cohorts and more survivors have room for it."
        )
    if rules.versions_back and 2 * rules.behind_each_model > rules.size_max:
        found.append(
            f"No buffer of {rules.size_max} has room for two versions with {rules.model_min} "
            "devices behind each: devices wait for others of their own version. Use larger cohorts."
        )
    return tuple(found)
