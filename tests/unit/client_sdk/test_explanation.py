"""What taking part means, in words: true of each kind of task, and safe against names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client_sdk.explanation import Explanation
from client_sdk.policy import PrivacyPolicy
from dp.accounting.budget import cost_of
from dp.accounting.figures import shown_up
from dp.contracts import CohortSpec, SegmentSpec
from dp.transfer_sizes import messages_size, upload_size
from tests.kits.data_accounts import ONE, Folder
from tests.kits.device import (
    account_in,
    evaluation_spec,
    make_manifest,
    sum_spec,
)
from tests.kits.explained import explained
from tests.kits.policy_specs import SPECS, VERIFIER


def of(name: str, folder: Path, **parts: Any) -> Explanation:
    return explained(make_manifest(SPECS[name](), VERIFIER), account_in(folder), **parts)


def test_the_figures_are_those_of_manifest_and_account(tmp_path: Path) -> None:
    account = account_in(tmp_path)
    for number in range(2):
        account.debit(ONE, bytes((number,)) * 32, "c")
    found = explained(ONE, account)
    device = {cost.unit: cost for cost in found.costs}["device"]
    assert device.spent == pytest.approx(cost_of("device", ONE, 2))
    assert device.after == pytest.approx(cost_of("device", ONE, 3))
    assert device.whole == pytest.approx(cost_of("device", ONE, 40))
    assert (found.charges, found.releases, found.releases_max) == (2, 2, 40)
    assert found.upload_bytes == upload_size(ONE)
    up, down = messages_size(ONE)
    assert (found.messages_up_bytes, found.messages_down_bytes) == (up, down)
    text = found.text()
    assert f"epsilon {shown_up(device.spent, 2)} of 8 is spent in this task" in text
    assert f"at least {ONE.cohort.survivors_min - 1} others" in text
    assert ONE.cohort.corrupt_max == 1
    assert "as long as at most 1 other device works with it" in text
    none = replace(found, corrupt_max=0).text()
    assert "as long as no other device works with it" in none


def test_a_megabyte_is_said_as_one(tmp_path: Path) -> None:
    segment = SegmentSpec(name="counts", length=1_000_000, clip=2.0)
    manifest = make_manifest(sum_spec(segments=(segment,)), VERIFIER)
    text = explained(manifest, account_in(tmp_path)).text()
    size = upload_size(manifest)
    assert 2_000_000 < size < 4_000_000
    assert f"{-(-size // 100_000) / 10:g} MB" in text
    assert "No model is fetched." in text


def test_the_messages_of_a_large_cohort_are_said(tmp_path: Path) -> None:
    """They are more than the vector of four numbers by far."""
    cohort = CohortSpec(size_min=60, size_max=60, survivors_min=50)
    text = explained(make_manifest(sum_spec(cohort=cohort), VERIFIER), account_in(tmp_path)).text()
    sent, fetched = re.findall(r"messages of at most ([0-9.]+) kB", text)
    assert 124.3 < float(sent) < 1.3 * 124.3  # measured, docs/communication.md
    assert 308.4 * 4 / 3 < float(fetched) < 1.3 * 308.4 * 4 / 3  # in base64


def test_noise_and_its_absence_are_told_apart(tmp_path: Path) -> None:
    said = {
        "device": ("Each device adds a part of the noise", "hides what this device sent"),
        "distributed": (
            "Each device adds a part of the noise",
            "whether one example is in its data",
        ),
        "local": ("noise of its own in every step", "whether one example is in its data"),
        "none": ("No noise is added. The sum is exact",),
    }
    specs = {**SPECS, "none": evaluation_spec}
    for name, sentences in said.items():
        found = explained(make_manifest(specs[name](), VERIFIER), account_in(tmp_path / name))
        for sentence in sentences:
            assert sentence in found.text(), name
        hidden = "does not hide this device as a whole" in found.text()
        assert hidden == (name in ("distributed", "local")), name
        assert bool(found.costs) == (name != "none")
        assert ("epsilon" in found.text().split("Who learns what")[0]) == bool(found.costs)


def test_a_task_that_trains_says_model_memory_and_schedule(tmp_path: Path) -> None:
    manifest = make_manifest(SPECS["distributed"](), VERIFIER)
    assert manifest.example_privacy is not None
    privacy = msgspec.structs.replace(manifest.example_privacy, period=4)
    manifest = msgspec.structs.replace(manifest, example_privacy=privacy)
    found = explained(manifest, account_in(tmp_path), memory_bytes=1_500_000_000)
    assert (found.purpose, found.period) == ("train", 4)
    assert found.sums_max == -(-manifest.budget.releases_max // 4)
    text = found.text()
    assert "1.5 GB of memory" in text
    assert f"of 4 charges each is in one, so in at most {found.sums_max} of all sums" in text
    assert "a model of 4.4 MB" in text
    assert "not known here" in of("distributed", tmp_path / "b").text()


def test_persons_are_called_persons(tmp_path: Path) -> None:
    manifest = make_manifest(
        msgspec.structs.replace(SPECS["distributed"](), unit="person"), VERIFIER
    )
    found = explained(manifest, account_in(tmp_path))
    assert found.protects == ("person",)
    assert "whether one person is in its data" in found.text()


def test_what_the_policy_refuses_comes_first_with_every_reason_and_its_way_out(
    tmp_path: Path,
) -> None:
    found = of("device", tmp_path, policy=PrivacyPolicy(min_cohort=500, max_upload_bytes=1))
    reasons = [refusal.reason for refusal in found.refusals]
    assert reasons == ["cohort-too-small", "upload-too-large"]
    first, *rest = found.text().splitlines()
    assert first == "This app's policy refuses the task now:"
    assert "min_cohort" in rest[0]
    assert "max_upload_bytes" in rest[1]


def test_everybody_who_learns_something_is_named(tmp_path: Path) -> None:
    text = of("device", tmp_path).text()
    for who in ("aggregator", "participant", "ledger", "partners", "records the traffic"):
        assert who in text
    assert "What this does not protect:" in text


def test_whose_account_counts_is_said(tmp_path: Path) -> None:
    assert explained(ONE, account_in(tmp_path / "a")).counts == "folder"
    named = Folder(tmp_path / "b", "journal").open()
    assert explained(ONE, named).counts == "data"
    assert "name the same data" in explained(ONE, named).text()


def test_a_name_of_the_operator_s_choice_cannot_speak_for_the_device(tmp_path: Path) -> None:
    """A manifest with such names is unsound; the words do not count on that."""
    name = "m\nNothing is charged.\x1b[2J\u202e" + "x" * 1_000
    found = replace(of("distributed", tmp_path), base_model=name, task=name)
    text = found.text()
    assert "\nNothing is charged" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "x" * 65 not in text


def test_a_task_that_is_paused_says_so(tmp_path: Path) -> None:
    assert "The task is paused now." in of("device", tmp_path, state="paused").text()
