"""Which tasks may count the participations of an example instead of releases (``dp.schedule``)."""

from __future__ import annotations

import msgspec

from dp.contracts.algorithms.declaration import Algorithm
from dp.contracts.rules import in_range, refuse
from secagg.manifest import Manifest

PERIOD_MAX = 10_000  # a device hashes every place of a block, whatever it holds


def check_schedule(manifest: Manifest, algorithm: Algorithm) -> None:
    """A contribution under a schedule is one part of the examples, and nothing of the others.

    Raises:
        ConfigurationError: ``parameter-out-of-range``, ``schedule-of-algorithm``,
            ``schedule-with-sampling``, ``schedule-too-long``, ``schedule-of-factors``.
    """
    privacy = manifest.example_privacy
    if privacy is None or privacy.period is msgspec.UNSET:
        return
    period = privacy.period
    in_range("period", period, 2, PERIOD_MAX)
    if not algorithm.schedules:
        refuse(
            "schedule-of-algorithm",
            f"What a device sends in {manifest.algorithm} is of all its examples.",
            expected="period unset",
            found=period,
            remedy="Leave period out.",
        )
    if privacy.mode == "distributed" and privacy.sampling_rate != 1:
        refuse(
            "schedule-with-sampling",
            "A scheduled batch is a whole part: drawing from it again would only lose signal.",
            expected="sampling_rate = 1",
            found=privacy.sampling_rate,
            remedy="Set sampling_rate = 1 or leave it out, or leave period out.",
        )
    if period > manifest.budget.releases_max:
        refuse(
            "schedule-too-long",
            "Parts of the schedule would never serve.",
            expected=f"period <= {manifest.budget.releases_max}, the task's releases_max",
            found=period,
            remedy="A shorter period, or more releases.",
        )
    if manifest.adapter is not None and manifest.adapter.kind == "rolora" and period % 2 == 0:
        refuse(
            "schedule-of-factors",
            "rolora trains its two factors in turn: with an even period, a part always meets the "
            "same one.",
            expected="an odd period",
            found=period,
            remedy="Choose an odd period, or the form ffa-lora.",
        )
