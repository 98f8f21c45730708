"""Public slots, and the chance that a batch makes its device miss one: what delta pays for it."""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from dp.accounting.figures import delta_shown, limit_shown, shown_up
from dp.accounting.slot_overrun import taken
from dp.accounting.statements import lines
from dp.contracts.rules import in_range, refuse
from secagg.manifest import Manifest

SLOT_MIN_S = 1e-3  # slots are counted from times in seconds


def check_slot(manifest: Manifest) -> None:
    """Slot and overrun are in range, and an overrun is stated only where a statement rests on it.

    Raises:
        ConfigurationError: ``parameter-out-of-range``, ``overrun-without-slot``,
            ``overrun-without-sampling``.
    """
    if manifest.report_slot_s != 0:
        in_range("report_slot_s", manifest.report_slot_s, SLOT_MIN_S, 30 * 86_400)
    overrun, example = manifest.overrun, manifest.example_privacy
    in_range("slot_overrun", overrun, 0, math.nextafter(1.0, 0.0))
    if overrun == 0:
        return
    if manifest.report_slot_s == 0:
        refuse(
            "overrun-without-slot",
            "A chance of missing the public slot is stated, and the task has no slot.",
            expected="report_slot_s > 0",
            found=manifest.report_slot_s,
            remedy="Set report_slot_s, or leave slot_overrun out.",
        )
    if example is None or example.sampling_rate >= 1:
        refuse(
            "overrun-without-sampling",
            "Only amplified statements of examples rest on the slot, and this task has none.",
            expected="slot_overrun = 0",
            found=overrun,
            remedy="Set a sampling_rate below 1, or leave slot_overrun out.",
        )


def check_overrun(manifest: Manifest) -> None:
    """What the overrun of all releases takes from delta leaves at least half of it.

    Raises:
        ConfigurationError: ``overrun-takes-delta``.
    """
    overrun, half = manifest.overrun, manifest.budget.delta / 2
    if overrun == 0:
        return
    releases = manifest.budget.releases_max
    alone = replace(
        manifest, slot_overrun=msgspec.UNSET, budget=replace(manifest.budget, delta=half)
    )
    for statement in lines(alone, releases):
        if not statement.amplified or statement.unit == "device":
            continue
        cost = taken(statement.epsilon, releases, overrun)
        if cost > half:
            refuse(
                "overrun-takes-delta",
                f"Missed slots take more than half of delta from the amplified statement of "
                f"{statement.mode.word} noise: (1 + e^epsilon) * releases_max * slot_overrun.",
                expected=f"at most {limit_shown(half)}, half of delta",
                found=f"(1 + e^{shown_up(statement.epsilon)}) * {releases} * "
                f"{limit_shown(overrun)} = {delta_shown(cost)}",
                remedy="State a smaller slot_overrun, if a longer report_slot_s or constant work "
                "makes it true; use fewer releases or more noise; or leave slot_overrun out: the "
                "statement then assumes that no slot is missed.",
            )
