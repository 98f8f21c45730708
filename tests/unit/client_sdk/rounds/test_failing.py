"""A training that fails is told with reason, row and tensor; after three a device stays away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from client_sdk.contribution import TrainingJob
from client_sdk.errors import ContributionError, PolicyRefusal, TaskRefusal
from client_sdk.failures import TrainingFailure
from client_sdk.rounds.contributing import Training
from client_sdk.rounds.failing import FAILURES_MAX, FailingTasks
from tests.kits.contributing import Runs, Setting, checkin_of
from tests.kits.device import make_manifest, sum_spec

VERIFIER = "ledger.test+b311a02c+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
NOISY = make_manifest(sum_spec(), VERIFIER)
PLAIN = make_manifest(sum_spec(device_noise_multiplier=0.0), VERIFIER)
TASK = NOISY.task


def gives(_job: TrainingJob) -> dict[str, np.ndarray]:
    return {"counts": np.ones(4)}


def raises(error: BaseException) -> Callable[[TrainingJob], Any]:
    def work(_job: TrainingJob) -> Any:
        raise error

    return work


SHAPE = ContributionError("tensor-shape", "It does not fit.", remedy="Mend it.")


async def test_a_failure_that_noise_hides_is_told_with_its_row_and_tensor(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    error = SHAPE.at(row=7, tensor="head.weight")
    training = Training(setting.device, Runs(raises(error)))
    contribution = await training.contribution(checkin_of(NOISY, version=3))
    assert not contribution.values()["counts"].any()
    expected = TrainingFailure(
        reason="tensor-shape",
        message="It does not fit.",
        remedy="Mend it.",
        row=7,
        tensor="head.weight",
        version=3,
        given="zeros",
    )
    assert training.failures == [expected]
    shown = setting.events[-1].detail
    assert (shown["failure"], shown["row"], shown["tensor"]) == ("tensor-shape", 7, "head.weight")
    assert setting.kinds() == ["training", "trained"]
    # A restarted process tells it again, once, and neither trains nor counts again.
    again = Training(Setting(tmp_path).device, Runs(gives))
    for _ in range(2):
        await again.contribution(checkin_of(NOISY, version=3))
    assert again.failures == [expected]
    assert FailingTasks(setting.device.journal).entries[0].count == 1


@pytest.mark.parametrize("manifest", [NOISY, PLAIN], ids=["noise", "none"])
@pytest.mark.parametrize("refuses", [False, True])
async def test_three_in_a_row_keep_a_device_away_until_it_is_told_to_try(
    tmp_path: Path, manifest: Any, refuses: bool
) -> None:
    kind = TaskRefusal if refuses else ContributionError
    work = raises(kind("tensor-shape", "It does not fit."))
    for count in range(1, FAILURES_MAX + 1):
        setting = Setting(tmp_path, require=None)
        FailingTasks(setting.device.journal).check(TASK)
        training = Training(setting.device, Runs(work))
        try:
            await training.contribution(checkin_of(manifest, version=count))
        except ContributionError:
            assert refuses or manifest is PLAIN
            assert training.failures[-1].given == "nothing"
        setting.device.journal.drop_contribution()
    failing = FailingTasks(Setting(tmp_path).device.journal)
    with pytest.raises(PolicyRefusal) as refused:
        failing.check(TASK)
    assert refused.value.reason == "training-failing"
    assert "try_again" in str(refused.value.remedy)
    assert "It does not fit." in str(refused.value)
    failing.check("another task")
    assert failing.clear(TASK)
    assert not failing.clear(TASK)
    failing.check(TASK)


async def test_a_success_ends_the_row(tmp_path: Path) -> None:
    setting = Setting(tmp_path)
    failing = FailingTasks(setting.device.journal)
    runs = Runs(raises(RuntimeError("no")))
    training = Training(setting.device, runs)
    for version in range(2 * FAILURES_MAX):
        runs.work = gives if version % FAILURES_MAX == 0 else raises(RuntimeError("no"))
        await training.contribution(checkin_of(NOISY, version=version))
        failing.check(TASK)
        assert (failing.entries == ()) == (version % FAILURES_MAX == 0)


@pytest.mark.parametrize("hidden", [True, False])
async def test_what_the_examples_decide_is_told_and_keeps_nobody_away_where_noise_hides_it(
    tmp_path: Path, hidden: bool
) -> None:
    """Who stays away for a data set without a usable example shows that there is none."""
    error = ContributionError("examples-failed", "Every example failed.")
    setting = Setting(tmp_path, require=None)
    training = Training(setting.device, Runs(raises(error)))
    for version in range(FAILURES_MAX):
        try:
            manifest = NOISY if hidden else PLAIN
            await training.contribution(checkin_of(manifest, version=version))
        except ContributionError:
            assert not hidden
    assert len(training.failures) == FAILURES_MAX
    failing = FailingTasks(setting.device.journal)
    if hidden:
        failing.check(TASK)
        return
    with pytest.raises(PolicyRefusal, match="training-failing"):
        failing.check(TASK)


async def test_a_contributor_says_that_nothing_of_its_examples_counted(tmp_path: Path) -> None:
    """Its values are what it gives; no noise tells them from others."""
    own = TrainingFailure(reason="examples-failed", message="Each failed.", row=2)
    runs = Runs(gives)
    runs.failure = own  # type: ignore[attr-defined]
    setting = Setting(tmp_path)
    training = Training(setting.device, runs)
    contribution = await training.contribution(checkin_of(NOISY, version=4))
    assert contribution.values()["counts"].any()
    assert contribution.failed is None
    expected = msgspec.structs.replace(own, version=4, given="zeros")
    assert training.failures == [contribution.failure] == [expected]
    assert setting.events[-1].detail["row"] == 2
