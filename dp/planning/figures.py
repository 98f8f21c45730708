"""What follows from a task's terms, before it exists: noise, sizes, graph, deadlines."""

from __future__ import annotations

import math

import msgspec

from dp.noise.removable import most_variance
from dp.transfer_sizes import download_size, messages_size, needs_model, upload_size
from secagg.graph.harary import neighbour_count
from secagg.graph.parameters import threshold
from secagg.manifest import Manifest

_STEPS = ("share_s", "check_s", "masked_input_s", "confirm_s", "unmask_s")


class NoiseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Noise in the sum. ``honest_min``: devices whose shares are counted on.

    ``guaranteed``, ``most``: standard deviation in one coordinate of the sum, in units of its
    clip's own: what is counted on, and the most that is left in a sum. ``share_variance``: of one
    device, integer units squared. ``levels``: parts that are taken off where fewer devices drop.
    """

    mechanism: str
    share_variance: int
    honest_min: int
    guaranteed: float
    most: float
    levels: int


class TaskFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Derived numbers of a task, for its largest cohort.

    ``example_noise``, ``device_noise``: multipliers, noise over the bound; None: no such noise.
    ``numbers``: of one vector. ``ring_bits``: of each. ``wrap_log2``: log2 of a bound on the chance
    that a sum wraps around. ``vector_bytes``: that a device sends each round;
    ``messages_up_bytes``, ``messages_down_bytes``: most of the protocol's messages beside it;
    ``model_bytes``: most of one whole model, 0 without one. ``degree``: neighbours of a device in
    a graph of the largest cohort; ``threshold``: of them that must answer for its secrets, so
    ``neighbours_lost_max`` may vanish. ``complete``: all are neighbours. ``drop_outs_max``: of a
    full cohort; ``corrupt_max``: may work with the aggregator. ``deadlines_s``: of each step, and
    ``report_s`` before it; ``round_s_max``: all steps behind the roster, if each takes all.
    """

    privacy: str
    example_noise: float | None
    device_noise: float | None
    noise: NoiseFigures | None
    numbers: int
    ring_bits: int
    wrap_log2: float
    vector_bytes: int
    messages_up_bytes: int
    messages_down_bytes: int
    model_bytes: int
    size_min: int
    size_max: int
    survivors_min: int
    drop_outs_max: int
    corrupt_max: int
    silent_max: int
    degree: int
    threshold: int
    neighbours_lost_max: int
    complete: bool
    deadlines_s: dict[str, float]
    round_s_max: float


def figures_of(manifest: Manifest) -> TaskFigures:
    """Args: manifest: a sound one."""
    rules, encoding, deadlines = manifest.cohort, manifest.encoding, manifest.deadlines
    example, device = manifest.example_privacy, manifest.device_privacy
    up, down = messages_size(manifest)
    neighbours = neighbour_count(rules.size_max, rules.degree)
    complete = neighbours == rules.size_max - 1
    needed = threshold(neighbours, rules.corrupt_max) if complete else rules.threshold
    return TaskFigures(
        privacy="none" if example is None else example.mode,
        example_noise=None if example is None else example.noise_multiplier,
        device_noise=None if device is None else device.noise_multiplier,
        noise=_noise(manifest),
        numbers=manifest.data_length,
        ring_bits=encoding.ring_bits,
        wrap_log2=encoding.wrap_log2,
        vector_bytes=upload_size(manifest),
        messages_up_bytes=up,
        messages_down_bytes=down,
        model_bytes=download_size(manifest) if needs_model(manifest) else 0,
        size_min=rules.size_min,
        size_max=rules.size_max,
        survivors_min=rules.survivors_min,
        drop_outs_max=rules.size_max - rules.survivors_min,
        corrupt_max=rules.corrupt_max,
        silent_max=rules.silent_max,
        degree=neighbours,
        threshold=needed,
        neighbours_lost_max=neighbours - needed,
        complete=complete,
        deadlines_s={
            "report_s": deadlines.report_s,
            **{step: getattr(deadlines, step) for step in _STEPS},
        },
        round_s_max=sum(getattr(deadlines, step) for step in _STEPS),
    )


def _noise(manifest: Manifest) -> NoiseFigures | None:
    noise = manifest.noise
    if noise is None:
        return None
    scale = manifest.segments[0].scale
    return NoiseFigures(
        mechanism=noise.mechanism,
        share_variance=noise.share_variance,
        honest_min=noise.honest_min,
        guaranteed=math.sqrt(noise.share_variance * noise.honest_min) / scale,
        most=math.sqrt(most_variance(noise, manifest.cohort)) / scale,
        levels=len(noise.removable_drops),
    )
