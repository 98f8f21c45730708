"""What a task says that its noise protects: a row, or all rows that name a person or document."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dp.contracts import BudgetSpec, check_manifest, parse_spec, warnings
from dp.contracts.units import protected_units
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest, decode_manifest, encode_manifest, manifest_digest
from tests.kits.tasks import built, statistics


def refused(**changes: Any) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        built(**changes)
    return caught.value


def changed(manifest: Manifest, **terms: Any) -> Manifest:
    privacy = msgspec.structs.replace(manifest.example_privacy, **terms)
    return msgspec.structs.replace(manifest, example_privacy=privacy)


def test_a_task_that_protects_examples_has_the_bytes_that_it_had() -> None:
    plain = encode_manifest(built())
    assert plain == encode_manifest(built(unit="example", unit_rows_max=3))
    assert b"unit_rows_max" not in plain
    persons = encode_manifest(built(unit="person"))
    assert decode_manifest(persons).example_privacy.protects == "person"
    assert manifest_digest(persons) != manifest_digest(plain)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"period": 3},
        {"algorithm": "zeroth-order"},
        {"mechanism": "discrete-gaussian"},
        {"device_noise_multiplier": 2.0, "examples_max": 4, "budget": BudgetSpec(max_epsilon=None)},
        {"algorithm": "fedavg", "privacy": "local", "noise_multiplier": 3.0},
    ],
)
@pytest.mark.parametrize("unit", ["person", "document"])
def test_tasks_with_noise_over_gradients_may(unit: str, changes: dict[str, Any]) -> None:
    manifest = built(**{"unit": unit, "unit_rows_max": 4, **changes})
    check_manifest(manifest)
    assert manifest.example_privacy is not None
    assert (manifest.example_privacy.unit, manifest.example_privacy.unit_rows_max) == (unit, 4)
    assert protected_units(manifest)[0].unit == unit


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"algorithm": "fedavg", "privacy": "none"}, "unit-without-examples"),
        ({"unit_rows_max": 0}, "parameter-out-of-range"),
        ({"unit_rows_max": 1 << 21}, "parameter-out-of-range"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert refused(**{"unit": "person", **changes}).reason == reason


def test_statistics_have_no_rows() -> None:
    with pytest.raises(ConfigurationError, match="unit-without-examples"):
        built(statistics(("x", 4, 1.0), unit="person", privacy="none"))


@pytest.mark.parametrize("terms", [{"unit": "person"}, {"unit_rows_max": 4}])
def test_a_manifest_with_one_of_both_is_refused(terms: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(changed(built(), **terms))
    assert caught.value.reason == "unit-rows"
    assert caught.value.remedy


@pytest.mark.parametrize("unit", ["device", "household", ""])
def test_a_task_file_knows_few_units(unit: str) -> None:
    with pytest.raises(ConfigurationError, match="spec-malformed"):
        parse_spec(f'task = "t"\nunit = "{unit}"\n')
    assert parse_spec('task = "t"\nunit = "person"\n').unit == "person"


def test_whoever_creates_it_is_told_what_a_single_row_costs() -> None:
    (told,) = [text for text in warnings(built(unit="person")) if "changing one example" in text]
    assert told.startswith("The task protects persons")
    assert "count persons in that policy" in told
    assert not any("changing one example" in text for text in warnings(built()))
