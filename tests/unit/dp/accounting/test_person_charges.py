"""What a release costs a person, and what a row where persons are protected: never too little."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from dp.accounting.budget import ALL_UNITS, Account, Unit, charges_of, cost_of
from dp.accounting.charges import charges_to
from dp.accounting.statements import headline, lines
from dp.contracts import BudgetSpec
from dp.example_sum import ExampleSum
from dp.ledger.verification import verify_ledger
from dp.planning.task import planned_costs
from dp.report.totals import together
from secagg.manifest import Manifest
from tests.kits.tasks import VERIFIER, built, ledger, seeded, served

NO_LIMIT = BudgetSpec(max_epsilon=None, releases_max=8)
TERMS: dict[str, Any] = {"budget": NO_LIMIT, "examples_max": 3}
EXAMPLES = built(task="examples", **TERMS)
PERSONS = built(task="persons", unit="person", **TERMS)
DOCUMENTS = built(task="documents", unit="document", **TERMS)
SCHEDULED = built(task="turns", unit="person", period=4, **TERMS)
LOCAL_TERMS: dict[str, Any] = {"algorithm": "fedavg", "noise_multiplier": 3.0, "budget": NO_LIMIT}
LOCAL = built(task="local", **LOCAL_TERMS)
LOCAL_PERSONS = built(task="local-persons", unit="person", **LOCAL_TERMS)
DEVICES = built(
    task="devices",
    algorithm="fedavg",
    privacy="none",
    device_noise_multiplier=2.0,
    budget=NO_LIMIT,
)
NONE = built(task="none", algorithm="fedavg", privacy="none", budget=NO_LIMIT)


def spent(*manifests: Manifest) -> Account:
    account = Account(delta=1e-5)
    for number, manifest in enumerate(manifests):
        account = account.spend(f"{number:02x}", manifest)
    return account


@pytest.mark.parametrize("manifest", [PERSONS, SCHEDULED, LOCAL_PERSONS, DOCUMENTS])
def test_what_one_clip_bounds_costs_what_the_task_states(manifest: Manifest) -> None:
    assert manifest.example_privacy is not None
    unit = manifest.example_privacy.protects
    stated = lines(manifest, 8)
    assert {statement.unit for statement in stated if not statement.amplified} == {unit}
    assert cost_of(unit, manifest, 8) == pytest.approx(headline(stated), rel=1e-9)
    plain = msgspec.structs.replace(
        manifest,
        example_privacy=msgspec.structs.replace(
            manifest.example_privacy, unit=msgspec.UNSET, unit_rows_max=msgspec.UNSET
        ),
    )
    assert headline(stated) == headline(lines(plain, 8))
    assert cost_of("device", manifest, 8) == cost_of("device", plain, 8)


def test_a_row_of_a_person_may_move_a_sum_by_two_clips() -> None:
    """Through the real clip: so that a person's epsilon does not hold for its rows."""
    long, opposite = np.zeros((2, PERSONS.data_length))
    long[0], opposite[0] = 3.0, -6.0
    found = []
    for person in (long + opposite, long):
        total = ExampleSum(PERSONS, seeded())
        total.add(person)
        found.append(total.total)
    clip_units = PERSONS.segments[0].clip_units
    moved = int(((found[0] - found[1]).astype(object) ** 2).sum())
    assert (1.99 * clip_units) ** 2 < moved <= (2 * clip_units) ** 2
    example, _, person = charges_of(PERSONS)
    assert (int(person.l2_squared), person.stated) == (clip_units**2, True)
    assert (int(example.l2_squared), example.stated) == (4 * clip_units**2, False)
    assert int(example.l1) == 2 * int(person.l1)


@pytest.mark.parametrize("releases", [1, 3, 4, 5, 8])
def test_a_schedule_counts_the_sums_of_a_person_and_of_its_rows(releases: int) -> None:
    k, each = -(-releases // 4), built(task="turns", unit="person", **TERMS)
    for unit in ("person", "example"):
        assert cost_of(unit, SCHEDULED, releases) == pytest.approx(cost_of(unit, each, k), rel=1e-6)
    assert cost_of("device", SCHEDULED, releases) == cost_of("device", each, releases)


@pytest.mark.parametrize("unit", ["person", "document"])
def test_where_rows_are_not_clipped_as_one_all_of_a_device_are_counted(unit: Unit) -> None:
    for manifest in (EXAMPLES, PERSONS, DOCUMENTS):
        assert manifest.example_privacy is not None
        if manifest.example_privacy.protects != unit:
            assert cost_of(unit, manifest, 1) == cost_of("device", manifest, 1)
            (charge,) = charges_to(unit, charges_of(manifest))
            assert not charge.stated
            assert int(charge.l2_squared) == 9 * manifest.segments[0].clip_units ** 2
    assert cost_of(unit, DEVICES, 2) == cost_of("example", DEVICES, 2)
    assert cost_of(unit, DEVICES, 2) > cost_of("device", DEVICES, 2)
    assert math.isinf(cost_of(unit, LOCAL, 1))
    assert math.isinf(cost_of(unit, NONE, 1))


def test_a_total_over_tasks_is_never_below_what_each_costs() -> None:
    account = spent(PERSONS, EXAMPLES, DEVICES, SCHEDULED)
    total = account.total("person")
    alone = [cost_of("person", manifest, 1) for manifest in (PERSONS, EXAMPLES, DEVICES, SCHEDULED)]
    assert max(alone) < total.epsilon <= sum(alone)
    assert total.derived == ("examples", "devices")
    assert total.stated == pytest.approx(spent(PERSONS, SCHEDULED).epsilon("person"))
    assert total.stored_before == total.unbounded == ()
    assert "no statement about persons" in together(total)
    assert account.epsilon("example") > spent(EXAMPLES, DEVICES).epsilon("example")
    assert spent(PERSONS, NONE).total("person").unbounded == ("none",)


def test_a_person_has_a_total_only_where_a_task_protects_persons() -> None:
    assert spent(EXAMPLES, DEVICES).units == ("example", "device")
    assert spent(EXAMPLES, PERSONS).units == ("example", "device", "person")
    assert spent(DOCUMENTS, PERSONS).units == ALL_UNITS
    assert len(charges_of(EXAMPLES)) == 2
    assert [cost.unit for cost in planned_costs(PERSONS)] == ["example", "device", "person"]
    assert [cost.protected for cost in planned_costs(PERSONS)] == [False, False, True]


def test_releases_of_one_kind_are_each_charged_to_a_person() -> None:
    """Where a ledger has several of equal facts, and where an account is stored and read."""
    ledgers = verify_ledger(served(ledger(PERSONS, (6, 6, 6))).get, VERIFIER)
    assert ledgers.verified, ledgers.problems
    by_unit = {total.unit: total for total in ledgers.totals}
    assert by_unit["person"].epsilon == pytest.approx(ledgers.epsilon, rel=1e-6)
    examples = spent(*[EXAMPLES] * 3)
    assert examples.epsilon("person") == pytest.approx(cost_of("person", EXAMPLES, 3))
    stored = Account.from_json(spent(PERSONS, SCHEDULED).to_json())
    assert stored.epsilon("person") == spent(PERSONS, SCHEDULED).epsilon("person")
    tripled = charges_of(EXAMPLES) * 3
    assert len(charges_to("person", tripled)) == 3


def test_the_budget_of_a_task_is_about_persons() -> None:
    tight = msgspec.structs.replace(
        spent(PERSONS), max_epsilon=1.01 * cost_of("person", PERSONS, 1)
    )
    with pytest.raises(Exception, match="budget per person"):
        tight.spend("ff", PERSONS)
