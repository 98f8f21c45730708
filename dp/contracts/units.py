"""Delta beside the number of units that a task protects.

NIST SP 800-226 asks for a delta well below one over the number of records: a mechanism that
publishes one record of n, whole and chosen at random, is (0, 1/n)-differentially private. A
manifest does not know how many devices are enrolled, or what they hold. It says what one cohort
holds, and that is compared; the whole task has no fewer.
"""

from __future__ import annotations

import math
from fractions import Fraction

import msgspec

from dp.accounting.figures import delta_shown, limit_shown
from dp.accounting.statements import Unit
from dp.contracts.rules import in_range, refuse
from secagg.manifest import ExamplePrivacy, Manifest

ROWS_MAX = 1 << 20  # of one unit
WELL_BELOW = Fraction(1, 10)  # delta times the units; more is a warning
_HELD_MAX = 1 << 40  # examples of one device; a rate near 0 names more than there are


class ProtectedUnits(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one full cohort. ``expected``: that its devices hold, by the batch and its rate.

    ``most``: that, or what one sum may hold, or with a schedule its whole pass, where that is more.
    A device may hold more than both.
    """

    unit: Unit
    expected: int
    most: int
    delta: float
    within: str = "one sum"

    def times_delta(self, count: int) -> Fraction:
        """Of the decimal that names delta, so that 0.01 times 100 is 1."""
        return Fraction(repr(self.delta)) * count

    @property
    def text(self) -> str:
        """Both numbers, and their product, rounded up."""
        product = delta_shown(float(self.times_delta(self.most)), 3)
        counted = f"{self.most}" if self.unit == "device" else f"{self.expected} expected"
        if self.expected < self.most:
            counted += f", at most {self.most} in {self.within}"
        return (
            f"delta {limit_shown(self.delta)} times the {self.unit}s of one full cohort "
            f"({counted}) is {product}"
        )


def protected_units(manifest: Manifest) -> tuple[ProtectedUnits, ...]:
    """Of each unit that the task protects; empty without privacy."""
    devices, delta = manifest.cohort.size_max, manifest.budget.delta
    example, training = manifest.example_privacy, manifest.training
    found: list[tuple[Unit, int, int, str]] = []
    if example is not None:
        batch = 1 if training is None else training.batch_size
        period = example.scheduled
        held = math.ceil(period * batch / Fraction(example.sampling_rate))
        held = min(max(1, held), _HELD_MAX)
        most = max(held, period * example.examples_max if example.mode == "distributed" else 1)
        within = "one sum" if period == 1 else f"a pass of {period} sums"
        found.append((example.protects, devices * held, devices * most, within))
    if manifest.device_privacy is not None:
        found.append(("device", devices, devices, "one sum"))
    return tuple(
        ProtectedUnits(unit=unit, expected=expected, most=most, delta=delta, within=within)
        for unit, expected, most, within in found
    )


def check_unit(privacy: ExamplePrivacy) -> None:
    """A unit that rows name has a bound on them, and a row that is a unit by itself has none.

    Raises:
        ConfigurationError: ``unit-rows``, ``parameter-out-of-range``.
    """
    if (privacy.unit is msgspec.UNSET) is not (privacy.unit_rows_max is msgspec.UNSET):
        refuse(
            "unit-rows",
            "unit and unit_rows_max belong together.",
            expected="both or neither",
            found={"unit": privacy.unit, "unit_rows_max": privacy.unit_rows_max},
            remedy="Create the task anew: task creation writes both.",
        )
    if privacy.unit_rows_max is not msgspec.UNSET:
        in_range("unit_rows_max", privacy.unit_rows_max, 1, ROWS_MAX)


def check_delta(manifest: Manifest) -> None:
    """Refuse a delta under which a task may publish one of its units whole.

    Raises:
        ConfigurationError: ``delta-against-units``.
    """
    for units in protected_units(manifest):
        if units.times_delta(units.expected) >= 1:
            refuse(
                "delta-against-units",
                f"A mechanism that publishes one {units.unit} of a cohort would have this delta.",
                expected=f"delta < 1 / {units.expected}, and well below",
                found=units.delta,
                remedy=f"Set delta to at most a tenth of one over all {units.unit}s of the task; "
                "epsilon grows little.",
            )


def delta_warnings(manifest: Manifest) -> tuple[str, ...]:
    """Where delta is not well below one over the units; ledgers of before may hold worse."""
    return tuple(
        f"{units.text[0].upper()}{units.text[1:]}. It should be well below 1 for all "
        f"{units.unit}s of the task, of which the manifest does not know the number (NIST SP "
        f"800-226): a mechanism that publishes one {units.unit} in {math.ceil(1 / units.delta)} "
        "whole has this delta. Lower delta."
        for units in protected_units(manifest)
        if units.times_delta(units.most) > WELL_BELOW
    )
