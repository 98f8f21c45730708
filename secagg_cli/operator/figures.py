"""The derived numbers of a task in sentences, the same before it exists and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secagg_cli.output import Output, power

if TYPE_CHECKING:
    from aggregator.views import TaskCreated, TaskPlanned
    from dp.planning.figures import TaskFigures
    from dp.planning.task import UnitCost

_NEVER_LOG2 = -4096.0  # written where a sum cannot wrap at all, and for anything smaller
_STEPS = {
    "share_s": "shares",
    "check_s": "checks",
    "masked_input_s": "vectors",
    "confirm_s": "confirmations",
    "unmask_s": "unmasking",
}


def say_figures(out: Output, task: TaskCreated | TaskPlanned) -> None:
    """Warnings to standard error; cost, noise, bytes, graph, deadlines, what is tolerated."""
    for warning in task.warnings:
        out.warn(warning)
    for cost in task.planned:
        out.say(_cost(cost, task.releases_max))
    if (found := task.figures) is not None:  # None: a service of before
        for line in (*_noise(found), *_sizes(found), *_cohort(found)):
            out.say(line)


def _cost(cost: UnitCost, releases_max: int) -> str:
    from dp.accounting.figures import delta_shown, shown_up

    called = f"One {cost.unit}" + ("" if cost.protected else ", which the task does not protect,")
    if cost.first is None or cost.last is None:
        return f"{called} has no finite epsilon: too little noise hides it, or none."
    after = f"all {releases_max}"
    if 0 < cost.sums < releases_max:
        after += f", of which it is in at most {cost.sums}"
    return (
        f"{called} will have spent epsilon {shown_up(cost.first)} after the first release and "
        f"{shown_up(cost.last)} after {after}, at delta {delta_shown(cost.delta)}, "
        "unamplified."
    )


def _noise(found: TaskFigures) -> list[str]:
    said = []
    if found.example_noise is not None:
        where = "in the sum" if found.privacy == "distributed" else "on each device"
        said.append(f"over one example's clip {found.example_noise:g} ({where})")
    if found.device_noise is not None:
        said.append(f"over a device's bound {found.device_noise:g}")
    lines = [f"Noise multiplier {' and '.join(said) or 'none: the task adds no noise'}."]
    noise = found.noise
    if noise is not None:
        lines.append(
            f"Noise in a coordinate of the sum ({noise.mechanism}): standard deviation "
            f"{noise.guaranteed:.4g} with the {noise.honest_min} shares that are counted on, at "
            f"most {noise.most:.4g}"
            + (f"; {noise.levels} parts of it can be taken off." if noise.levels else ".")
        )
    return lines


def _sizes(found: TaskFigures) -> list[str]:
    model = (
        f"a model of at most {found.model_bytes:,} bytes where it is new"
        if found.model_bytes
        else "no model"
    )
    wraps = (
        "cannot wrap around"
        if found.wrap_log2 <= _NEVER_LOG2
        else f"wraps around with probability at most {power(found.wrap_log2)}"
    )
    return [
        f"A vector has {found.numbers:,} numbers of {found.ring_bits} bits; a sum {wraps}.",
        f"Each round a device sends {found.vector_bytes:,} bytes of vector and at most "
        f"{found.messages_up_bytes:,} of messages, and fetches at most "
        f"{found.messages_down_bytes:,} of messages and {model}.",
    ]


def _cohort(found: TaskFigures) -> list[str]:
    graph = "all others" if found.complete else f"{found.degree} others"
    steps = ", ".join(f"{name} {found.deadlines_s[key]:g}" for key, name in _STEPS.items())
    return [
        f"A cohort has {found.size_min} to {found.size_max} devices, each with shares at {graph}; "
        f"{found.threshold} of those {found.degree} open a secret, so "
        f"{found.neighbours_lost_max} of them may vanish.",
        f"Of a full cohort {found.drop_outs_max} devices may vanish ({found.survivors_min} must be "
        f"in a sum), and {found.corrupt_max} may work with the aggregator; the noise of "
        f"{found.silent_max} survivors is not counted on.",
        f"Deadlines in seconds: forming {found.deadlines_s['report_s']:g}; {steps}; together at "
        f"most {found.round_s_max:g} behind the roster.",
    ]
