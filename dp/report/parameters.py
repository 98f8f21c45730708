"""The parameters of a task's manifest, each with its meaning."""

from __future__ import annotations

import math

import msgspec

from dp.accounting.figures import limit_shown
from dp.contracts import overshoot
from dp.report.data import Parameter
from dp.report.words import a, protected
from dp.schedule import participations
from secagg.manifest import Manifest


def parameters(manifest: Manifest) -> tuple[Parameter, ...]:
    """All rows that this manifest has."""
    rows = []

    def row(name: str, value: object, meaning: str, derived: str = "") -> None:
        text = limit_shown(value) if isinstance(value, float) else str(value)
        rows.append(Parameter(name=name, value=text, meaning=meaning, derived=derived))

    rules, example, device = manifest.cohort, manifest.example_privacy, manifest.device_privacy
    row("cohort", f"{rules.size_min} to {rules.size_max}", "devices that start a sum")
    row("survivors_min", rules.survivors_min, "fewest devices in a released sum")
    row("corrupt_max", rules.corrupt_max, "devices that may work with the aggregator")
    if rules.degree:
        row(
            "degree",
            rules.degree,
            "neighbours that each device of a large cohort has",
            "secagg plan cohort, from the cohort's sizes and corrupt_max",
        )
        row(
            "threshold",
            rules.threshold,
            "neighbours who open one secret of a device together",
            "with the degree",
        )
    row("silent_max", rules.silent_max, "survivors whose noise is not counted")
    if example is not None:
        where = "by every device in every local step" if example.mode == "local" else "over the sum"
        unit = example.protects
        row("clip", example.clip, f"L2 bound of one {unit}'s gradient")
        row("noise_multiplier", example.noise_multiplier, f"noise over the clip, {where}")
        row("sampling_rate", example.sampling_rate, f"chance that {a(unit)} joins a batch")
        if example.scheduled > 1:
            most = manifest.budget.releases_max
            row("period", example.scheduled, f"parts of a device's {unit}s, one for each charge")
            row(
                "participations",
                f"at most {participations(most, example.scheduled)} of {most}",
                f"sums of the task that {a(unit)} can be in",
                "releases_max over period, rounded up",
            )
        if example.mode == "distributed":
            row("examples_max", example.examples_max, f"most {unit}s of a device in one sum")
        if example.unit_rows_max is not msgspec.UNSET:
            row("unit_rows_max", example.unit_rows_max, f"most rows of a {unit} that are used")
    if device is not None:
        row("device clip", device.clip, "L2 bound of a device's whole contribution")
        row("device noise_multiplier", device.noise_multiplier, "noise over that bound")
        row("participation_rate", device.participation_rate, "chance that a device contributes")
    if manifest.noise is not None:
        row(
            "share_variance",
            manifest.noise.share_variance,
            "one device's noise, units squared",
            "the largest (noise_multiplier times exact bound) squared that a unit needs, over "
            "(survivors_min less silent_max), rounded up",
        )
        drops = manifest.noise.removable_drops
        row(
            "removable noise",
            ", ".join(map(str, drops)) if drops else "none",
            "drop-outs up to which each further part is kept; the others are taken off the sum",
        )
        row(
            "overshoot",
            overshoot(manifest) or 0.0,
            "most noise variance in a sum over the guaranteed one",
            "the largest over all admissible drop-outs",
        )
    terms = manifest.clip_adaptation
    if terms is not None:
        row(
            "adaptive clip",
            f"{limit_shown(terms.clip_min)} to {limit_shown(terms.clip_max)}",
            "range of the clip",
        )
        row("quantile", terms.quantile, "share of the norms that are to be at most the clip")
        row("clip learning_rate", terms.learning_rate, "of the clip's geometric step")
    for segment in manifest.segments:
        row(
            f"segment {segment.name}",
            f"{segment.length} numbers",
            f"clip {limit_shown(segment.clip)}, {segment.scale} units per 1, "
            f"exact bound {segment.clip_units}",
            "exact bound: clip times units per 1, rounded down",
        )
    row(
        "ring",
        f"{manifest.encoding.ring_bits} bits",
        "size of a coordinate under the masks",
        "the fewest bits in which a sum wraps around with a chance of at most 2^-40",
    )
    row(
        "wrap-around",
        f"2^{math.ceil(manifest.encoding.wrap_log2)}",
        "bound on the chance that a sum overflows; costs accuracy, never privacy",
        "the full signal and Chernoff's bound for the noise, over all coordinates",
    )
    slot_s = manifest.report_slot_s
    row(
        "report_slot_s",
        f"{slot_s:g} s" if slot_s else "none",
        "devices report in at multiples of it, the first that leaves a whole one"
        if slot_s
        else "devices report in when ready",
    )
    if slot_s:
        row(
            "slot_overrun",
            repr(manifest.overrun) if manifest.overrun else "none",
            "stated chance per release that a batch makes its device miss the slot, or fail",
        )
    row("releases_max", manifest.budget.releases_max, "releases that the budget allows")
    row("delta", manifest.budget.delta, "chance at which an epsilon may fail")
    if manifest.training is not None:
        training = manifest.training
        row("local_steps", training.local_steps, "steps on a device for each sum")
        row("batch_size", training.batch_size, f"expected {protected(manifest)}s of a batch")
        row("max_tokens", training.max_tokens, "tokens to which an example is cut")
        row("local_learning_rate", training.local_learning_rate, "of a device's own steps")
        row("server_learning_rate", training.server_learning_rate, "of the step with the sum")
        row("server_optimiser", training.server_optimiser, "what takes that step")
        if manifest.training.denominator:
            row("denominator", manifest.training.denominator, "public constant under the sum")
        else:
            row("denominator", "from the sum", "the contributors, or the sum of their weights")
    return tuple(rows)
