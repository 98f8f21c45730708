"""Delta beside the number of protected units: refused, warned of, and told of old ledgers."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from dp.contracts import (
    BudgetSpec,
    TrainingSpec,
    check_manifest,
    check_recorded,
    warnings,
)
from dp.contracts.units import protected_units
from dp.ledger.verification import verify_ledger
from dp.report import report_data
from secagg.errors import ConfigurationError
from secagg.manifest import Manifest
from secagg_cli.audit.report import render
from secagg_cli.main import app
from tests.kits.tasks import VERIFIER, built, ledger, served, six, statistics


def budget(delta: float) -> BudgetSpec:
    return BudgetSpec(max_epsilon=None, delta=delta, releases_max=4)


def examples(delta: float, **changes: object) -> Manifest:
    """Six devices with 25 examples each in a batch."""
    terms = {
        "training": TrainingSpec(batch_size=25),
        "examples_max": 32,
        "sampling_rate": 1.0,
        **changes,
    }
    return built(budget=budget(delta), **terms)


def devices(delta: float, size: int = 6) -> Manifest:
    cohort = six(size_min=size, size_max=size, survivors_min=size - 2)
    task = statistics(("x", 4, 1.0), device_noise_multiplier=4.0, cohort=cohort)
    return built(msgspec.structs.replace(task, budget=budget(delta)))


def at_delta(manifest: Manifest, delta: float) -> Manifest:
    """As a version that did not compare would have made it."""
    return msgspec.structs.replace(
        manifest, budget=msgspec.structs.replace(manifest.budget, delta=delta)
    )


def said(manifest: Manifest) -> list[str]:
    return [text for text in warnings(manifest) if "NIST" in text]


def test_the_units_of_one_cohort_are_counted() -> None:
    (found,) = protected_units(examples(1e-5))
    assert (found.unit, found.expected, found.most) == ("example", 150, 192)
    (found,) = protected_units(examples(1e-5, sampling_rate=0.25, report_slot_s=60.0))
    assert (found.unit, found.expected, found.most) == ("example", 600, 600)
    (found,) = protected_units(devices(1e-5, 9))
    assert (found.unit, found.expected, found.most) == ("device", 9, 9)
    both = built(device_noise_multiplier=2.0, examples_max=4, budget=budget(1e-5))
    assert [units.unit for units in protected_units(both)] == ["example", "device"]
    local = built(algorithm="fedavg", budget=budget(1e-5), training=TrainingSpec(batch_size=7))
    assert local.example_privacy.sampling_rate == 0.25
    assert [units.most for units in protected_units(local)] == [168]
    assert protected_units(built(algorithm="fedavg", privacy="none")) == ()


@pytest.mark.parametrize(
    ("make", "least"), [(examples, 1 / 150), (devices, 0.1)], ids=["examples", "devices"]
)
def test_a_delta_that_lets_one_unit_be_published_is_refused(make, least: float) -> None:
    cohort = {} if make is examples else {"size": 10}
    whole = at_delta(make(least / 2, **cohort), least * 1.0000001 if make is examples else least)
    with pytest.raises(ConfigurationError) as caught:
        check_manifest(whole)
    error = caught.value
    assert error.reason == "delta-against-units"
    assert error.found == whole.budget.delta
    assert error.expected == f"delta < 1 / {round(1 / least)}, and well below"
    assert "at most a tenth" in (error.remedy or "")
    with pytest.raises(ConfigurationError) as caught:
        make(whole.budget.delta, **cohort)  # nor is it created
    assert caught.value.reason == "delta-against-units"
    check_manifest(at_delta(whole, least * 0.999))


def test_a_delta_that_is_not_well_below_is_warned_of_with_both_numbers() -> None:
    (warning,) = said(examples(0.002))
    assert warning.startswith(
        "Delta 0.002 times the examples of one full cohort (150 expected, at most 192 in one sum) "
        "is 0.384."
    )
    (warning,) = said(devices(0.02))
    assert warning.startswith("Delta 0.02 times the devices of one full cohort (6) is 0.12")
    assert "one device in 50 whole" in warning
    assert said(examples(0.1 / 192)) == []
    assert said(devices(0.0166)) == []


def test_a_rate_near_zero_has_no_number_too_large() -> None:
    manifest = examples(1e-5)
    privacy = msgspec.structs.replace(manifest.example_privacy, sampling_rate=5e-324)
    (found,) = protected_units(msgspec.structs.replace(manifest, example_privacy=privacy))
    assert found.expected == 6 << 40
    assert "is " in found.text


def test_a_ledger_of_before_stays_verified_and_the_reader_is_warned(tmp_path: Path) -> None:
    """Its task was created when nobody compared: that is said, and not called forged."""
    old = at_delta(examples(1e-5), 0.01)
    check_recorded(old)
    with pytest.raises(ConfigurationError):
        check_manifest(old)
    files = served(ledger(old, (4, 5)))
    audit = verify_ledger(files.get, VERIFIER)
    assert (audit.verified, audit.problems) == (True, ())
    page = render(report_data(audit))
    assert "(150 expected, at most 192 in one sum) is 1.92" in page
    assert "Delta against the number of protected units" in page
    for name, content in files.items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    command = ["audit", "verify", str(tmp_path), "--key", VERIFIER]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert "Delta 0.01 times the examples" in result.output
    found = json.loads(CliRunner().invoke(app, [*command, "--format", "json"]).stdout)
    assert [(item["task"], "is 1.92" in item["text"]) for item in found["warnings"]] == [
        (old.task, True)
    ]
