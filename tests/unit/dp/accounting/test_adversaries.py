"""Whom a line holds off, and what it assumes of time: the same in line, assumption and exposure."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from msgspec.structs import replace

from dp.accounting.statements import NoiseKind, PrivacyStatement, lines
from dp.contracts import BudgetSpec, CohortSpec
from dp.ledger.records import same_terms, statement_record
from dp.report.words import assumptions, exposure
from secagg.manifest import Manifest
from tests.kits.tasks import built, statistics

NO_LIMIT = BudgetSpec(max_epsilon=None)
READERS = ", and everyone who sees the model"
KINDS: dict[str, dict[str, Any]] = {
    "local": {"algorithm": "fedavg"},
    "device-level": {"algorithm": "fedavg", "privacy": "none", "device_noise_multiplier": 2.0},
    "device-level, abstaining": {
        "algorithm": "fedavg",
        "privacy": "none",
        "device_noise_multiplier": 2.0,
        "participation_rate": 0.5,
    },
    "distributed": {},
    "distributed, all examples": {"sampling_rate": 1.0},
    "device-level and distributed": {"device_noise_multiplier": 2.0, "examples_max": 4},
    "local and device-level": {"algorithm": "fedavg", "device_noise_multiplier": 2.0},
}
# corrupt_max below silent_max, and equal; one and several
SETS = [(c, s) for c, s in itertools.product(range(4), range(1, 5)) if c <= s]


def of(kind: str, corrupt: int = 0, silent: int = 1, slot_s: float = 0.0) -> Manifest:
    cohort = CohortSpec(
        size_min=24, size_max=24, survivors_min=20, corrupt_max=corrupt, silent_max=silent
    )
    return built(cohort=cohort, budget=NO_LIMIT, report_slot_s=slot_s, **KINDS[kind])


def number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return None if found is None else int(found[1])


@pytest.mark.parametrize(("corrupt", "silent"), SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_line_assumption_and_exposure_name_the_same_devices(
    kind: str, corrupt: int, silent: int
) -> None:
    manifest = of(kind, corrupt, silent)
    assert (manifest.cohort.corrupt_max, manifest.cohort.silent_max) == (corrupt, silent)
    assumed, seen = " ".join(assumptions(manifest)), exposure(manifest)[0].what
    assert number(r"At most (\d+) devices? of a cohort help", assumed) == (corrupt or None)
    assert ("No device of a cohort helps" in assumed) is (corrupt == 0)
    assert number(r"unless it has more than (\d+) devices? of", seen) == (corrupt or None)
    assert ("unless it has a device of" in seen) is (corrupt == 0)
    if manifest.noise is not None:
        assert f"the noise of {silent} is not counted" in assumed
    assert lines(manifest, 1)
    for line in lines(manifest, 1):
        helpers = number(r"aggregator with (\d+) other device", line.adversary)
        known = number(r"knowing the noise of (\d+) device", line.adversary)
        if line.mode == NoiseKind.LOCAL:  # its noise is the device's own
            assert (helpers, known) == (None, None)
            assert line.adversary.startswith("everyone, if ")
            continue
        assert helpers == (corrupt or None)  # nobody whom the masks do not stand against
        assert known == (None if corrupt == silent else silent)  # helpers know their own noise
        assert READERS in line.adversary
    for text in (assumed, seen, *(line.adversary for line in lines(manifest, 1))):
        assert not re.search(r"\b1 (other )?devices\b|\b[2-9] (other )?device\b", text)


def test_a_line_never_counts_noise_that_its_devices_know() -> None:
    """More corrupt devices than silent ones: no validator admits it, and no line rests on it."""
    manifest = of("distributed", 2, 2)
    wrong = replace(manifest, cohort=replace(manifest.cohort, corrupt_max=3))
    (line,) = lines(wrong, 1)
    assert number(r"with (\d+) other", line.adversary) == 2


TERMS = {  # by unit, with slots or without: in the headline, in the assumptions
    ("example", False): ("if time does not show one example more", "Time does not show one"),
    ("example", True): ("if one example more fits the slot", "One example more fits the slot"),
    ("device", False): ("if time does not show the data", "Time does not show the data"),
    ("device", True): ("if time after the slot does not show the data", "Time after the slot"),
}


@pytest.mark.parametrize("slot_s", [0.0, 60.0])
@pytest.mark.parametrize("kind", KINDS)
def test_each_headline_says_what_it_assumes_of_time_and_so_do_the_assumptions(
    kind: str, slot_s: float
) -> None:
    manifest = of(kind, slot_s=slot_s)
    found = lines(manifest, 1)
    assumed = [text for text in assumptions(manifest) if "ime" in text or "fits" in text]
    units = {line.unit for line in found}
    for (unit, slots), (term, assumption) in TERMS.items():
        due = unit in units and slots == (slot_s > 0)
        assert any(text.startswith(assumption) for text in assumed) is due
        stated = [line for line in found if term in line.adversary]
        assert {line.unit for line in stated} == ({unit} if due else set())
    for line in found:
        assert line.amplified or line.adversary.endswith(TERMS[line.unit, slot_s > 0][0])
    for line in lines(manifest, 1, replaced=True):
        assert "one example more" not in line.adversary
        assert ", if " in line.adversary


def test_statistics_assume_of_time_what_every_line_for_devices_does() -> None:
    task = statistics(("x", 4, 1.0), device_noise_multiplier=4.0)
    (line,) = lines(built(task), 1)
    assert line.adversary.endswith(", if time does not show the data")


def recorded(line: PrivacyStatement, words: str) -> dict[str, Any]:
    return {**statement_record(line), "adversary": words}


@pytest.mark.parametrize("slot_s", [0.0, 60.0])
@pytest.mark.parametrize(("corrupt", "silent"), SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_records_in_the_words_of_every_earlier_version_are_accepted_and_no_others(
    kind: str, corrupt: int, silent: int, slot_s: float
) -> None:
    manifest = of(kind, corrupt, silent, slot_s)
    several = "" if silent == 1 else "s"
    for line in lines(manifest, 1):
        untimed = line.adversary.split(", if ")[0]
        if line.amplified and line.unit == "example":
            untimed = line.adversary  # said it of the batch, as now
        elif line.amplified:
            untimed += ", if nothing but the sum depends on who abstains"
        words = {line.adversary, untimed}
        if line.mode != NoiseKind.LOCAL:
            terms = untimed.split(READERS)[1]
            words.add(f"the aggregator with {silent} other device{several}{READERS}{terms}")
        for accepted in words:
            assert same_terms(recorded(line, accepted), manifest, line), accepted
        for wrong in (
            "everyone",
            "",
            untimed + ".",
            "the aggregator" + READERS,
            f"the aggregator with {silent + 1} other devices{READERS}",
        ):
            assert wrong in words or not same_terms(recorded(line, wrong), manifest, line), wrong


def test_a_participant_of_a_statistic_sees_no_model() -> None:
    plain = statistics(("counts", 4, 1.0), privacy="none", device_noise_multiplier=2.0)
    seen = {each.who: each.what for each in exposure(built(plain))}
    assert seen["every participant"].startswith("each released sum, if it asks for it")
