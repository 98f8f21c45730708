"""``secagg plan task`` and ``plan memory``, and the planner of whole tasks behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from client_sdk.training.lora import adapter_spec
from dp.contracts import BudgetSpec
from dp.contracts.spec import parse_spec
from dp.errors import AccountingError
from dp.planning.task import plan_task, planned_costs
from secagg.errors import ConfigurationError
from secagg.lora.forms import sent_length
from secagg_cli.main import app
from secagg_cli.operator.figures import _cost
from secagg_cli.operator.task import read_spec
from tests.kits.commands import invoke
from tests.kits.tasks import built
from tests.kits.tiny_training import tiny, tiny_folder

TARGET = {"population": 100, "cohort": 100, "rounds": 10, "epsilon": 4.0, "delta": 1e-6}


@pytest.mark.parametrize("mechanism", ["skellam", "discrete-gaussian"])
@pytest.mark.parametrize("unit", ["device", "example"])
def test_a_plan_meets_its_target_closely_and_from_below(mechanism: str, unit: str) -> None:
    plan = plan_task(**TARGET, length=4096, mechanism=mechanism, unit=unit)
    assert 3.98 < plan.epsilon <= 4.0
    # Gaussian noise of 10 rounds at this target needs 3.775, by its Renyi bound 4.01.
    assert 3.775 <= plan.noise_multiplier < 4.05
    assert plan.survivors_min == 90
    assert plan.upload_bytes == math.ceil((4096 + 1) * plan.ring_bits / 8)
    assert plan.wrap_log2 <= -40
    assert not plan.useless


def test_hopeless_targets_are_said_plainly() -> None:
    small = plan_task(
        population=50, cohort=8, rounds=10, epsilon=4, delta=1e-5, length=92_160, dropout=0.2
    )
    assert small.useless
    assert small.noise_norm_over_clip > 100
    assert small.participations == pytest.approx(1.6)
    # For examples the same cohort learns: 8 * 24 contributions instead of 8.
    examples = plan_task(
        population=8,
        cohort=8,
        rounds=10,
        epsilon=8,
        delta=1e-5,
        length=92_160,
        dropout=0.2,
        unit="example",
    )
    assert not examples.useless


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": math.nan},
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": math.nan},
        {"delta": 1.0},
        {"rounds": 0},
        {"cohort": 101},
        {"length": 0},
        {"dropout": 1.0},
        {"batch": 0},
        {"clip": math.inf},
    ],
)
def test_impossible_targets_are_typed_errors(changes: dict) -> None:
    with pytest.raises(AccountingError) as caught:
        plan_task(**{**TARGET, "length": 100, **changes})
    assert caught.value.reason == "parameter-out-of-range"


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        plan_task(**{**TARGET, "epsilon": 1e-5}, length=100_000)


def test_plan_task_prints_what_an_operator_needs() -> None:
    arguments = ("--cohort", "8", "--rounds", "10", "--epsilon", "4", "--dropout", "0.2")
    keys = invoke("plan", "task", *arguments)
    assert keys["useless"] is True
    assert keys["epsilon"] <= 4
    assert {"noise_multiplier", "scale", "ring_bits", "upload_bytes"} <= keys.keys()
    for unit, shown in (("example", "one example more"), ("device", "the data")):
        text = CliRunner().invoke(app, ["plan", "task", *arguments, "--unit", unit]).stdout
        assert f"time must not show {shown}" in " ".join(text.split())
    refused = invoke("plan", "task", *arguments, "--population", "4", code=1)
    assert refused["error"]["reason"] == "parameter-out-of-range"


def test_a_period_is_planned_by_the_sums_that_an_example_is_in() -> None:
    """One pass of four rounds needs the noise of one round, four passes of sixteen that of four."""
    once = plan_task(**TARGET | {"rounds": 1}, length=4096, unit="example")
    passes = plan_task(**TARGET | {"rounds": 4}, length=4096, unit="example", period=4)
    assert (once.sums, passes.sums) == (1, 1)
    assert passes.noise_multiplier == pytest.approx(once.noise_multiplier, rel=2e-3)
    assert passes.epsilon <= TARGET["epsilon"]
    assert passes.grid_epsilon < 2 * passes.epsilon / math.sqrt(passes.share_variance)
    every = plan_task(**TARGET | {"rounds": 4}, length=4096, unit="example")
    more = plan_task(**TARGET | {"rounds": 16}, length=4096, unit="example", period=4)
    assert (every.sums, more.sums) == (4, 4)
    assert more.noise_multiplier == pytest.approx(every.noise_multiplier, rel=2e-3)
    arguments = ("--cohort", "8", "--rounds", "10", "--epsilon", "4", "--period", "4")
    text = CliRunner().invoke(app, ["plan", "task", *arguments, "--unit", "example"]).stdout
    assert "one example is in at most 3 of 10 sums; a device may be in all" in " ".join(
        text.split()
    )
    refused = invoke("plan", "task", *arguments, code=1)
    assert refused["error"]["reason"] == "schedule-without-examples"
    refused = invoke("plan", "task", *arguments, "--unit", "example", "--period", "11", code=1)
    assert refused["error"]["reason"] == "schedule-too-long"


WHOLE = ("plan", "task", "--cohort", "8", "--rounds", "8", "--epsilon", "8", "--examples", "400")
WHOLE += ("--passes", "2", "--clip", "0.1", "--dropout", "0.2")


def test_a_whole_task_is_planned_into_a_file_that_task_create_takes(tmp_path: Path) -> None:
    file = tmp_path / "support-bot.json"
    keys = invoke(*WHOLE, "--model", str(tiny_folder()), "--targets", "o_proj", "--out", str(file))
    assert read_spec(file) == keys["task"]
    described = adapter_spec(tiny()[0], "ffa-lora", 4, 8, ("o_proj",), bytes(32))
    assert keys["length"] == sent_length(described)
    spec = parse_spec(file.read_bytes(), toml=False)
    manifest = built(msgspec.structs.replace(spec, adapter=described))
    assert (manifest.task, manifest.example_privacy.period) == ("support-bot", 4)
    assert planned_costs(manifest)[0].last == keys["epsilon"] <= 8
    again = invoke(*WHOLE, "--out", str(file), code=1)
    assert again["error"]["reason"] == "out-taken"


@pytest.mark.parametrize("unit", ["person", "document"])
def test_a_task_of_persons_is_planned_as_one_of_examples_with_room_for_their_rows(
    unit: str, tmp_path: Path
) -> None:
    file = tmp_path / "support-bot.json"
    keys = invoke(*WHOLE, "--unit", unit, "--length", "768", "--out", str(file))
    rows = invoke(*WHOLE, "--length", "768")
    assert (keys["unit"], keys["task"]["unit"]) == (unit, unit)
    assert (keys["epsilon"], keys["noise_multiplier"]) == (
        rows["epsilon"],
        rows["noise_multiplier"],
    )
    assert keys["task"]["examples_max"] == 16 * rows["task"]["examples_max"]
    adapter = adapter_spec(tiny()[0], "ffa-lora", 4, 8, ("o_proj",), bytes(32))
    spec = parse_spec(file.read_bytes(), toml=False)
    privacy = built(msgspec.structs.replace(spec, adapter=adapter)).example_privacy
    assert (privacy.protects, privacy.unit_rows_max, privacy.period) == (unit, 16, 4)
    assert keys["costs"]["example"] > keys["epsilon"]  # a row of it, by an exchange
    text = " ".join(CliRunner().invoke(app, [*WHOLE, "--unit", unit]).output.split())
    assert f"per {unit} at delta" in text
    assert f"time must not show one {unit} more" in text
    assert f"one {unit} is in at most 2 of 8 sums" in text


def test_a_whole_plan_says_what_it_leaves() -> None:
    def said(*changes: str) -> str:
        done = CliRunner().invoke(app, [*WHOLE, *changes])
        return " ".join(done.output.split())

    text = said()
    assert "period 4: a sum has 100 examples, the public divisor" in text
    assert "a device computes 100 gradients" in text
    assert "The noise takes part of what it could learn." in text
    assert "Each of these alone would be enough:" in text
    assert "The clip of 1 is a guess" not in text
    assert "It will hardly learn" in said("--signal", "0.02")
    short = said("--length", "64", "--population", "800", "--examples", "40000")
    assert "enough:" not in short
    assert "One is expected in 0.08 of 8; after 1 its own account shows epsilon" in short
    assert "the last pass is not whole: 10 rounds cost the same epsilon" in said("--rounds", "9")
    guessed = [word for word in WHOLE if word not in ("--clip", "0.1")]
    text = CliRunner().invoke(app, guessed).output
    assert "The clip of 1 is a guess" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--out", "task.toml"), "out-not-json"),
        (("--period", "2"), "passes-and-period"),
        (("--unit", "device"), "schedule-without-examples"),
        (("--examples", "20"), "examples-too-few"),
        (("--passes", "9"), "parameter-out-of-range"),
        (("--out", "A task.json"), "task-name"),
    ],
)
def test_a_whole_plan_that_cannot_be_is_refused(arguments: tuple[str, ...], reason: str) -> None:
    assert invoke(*WHOLE, *arguments, code=1)["error"]["reason"] == reason


def test_a_file_needs_the_number_of_examples() -> None:
    words = ("--cohort", "8", "--rounds", "8", "--epsilon", "8", "--out", "task.json")
    assert invoke("plan", "task", *words, code=1)["error"]["reason"] == "plan-without-examples"


def test_plan_clip_measures_public_rows(tmp_path: Path) -> None:
    file = tmp_path / "public.jsonl"
    rows = [{"prompt": "What is rain?", "answer": word} for word in ("Water.", "It is wet.", "Sky")]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ("--data", str(file), "--model", str(tiny_folder()), "--targets", "o_proj")
    keys = invoke("plan", "clip", *words)
    assert (keys["examples"], keys["left_out"]) == (3, 0)
    assert [one["clip"] / keys["median"] for one in keys["signals"]] == [1.0, 0.5, 0.25]
    assert all(0 <= one["signal"] <= 1 for one in keys["signals"])

    of = zip(rows, ("ann", "ann", "bob"), strict=True)
    file.write_text("\n".join(json.dumps({**row, "unit": name}) for row, name in of))
    keys = invoke("plan", "clip", *words, "--unit", "person")
    assert (keys["unit"], keys["units"], keys["examples"]) == ("person", 2, 3)
    keys = invoke("plan", "clip", *words, "--unit", "person", "--unit-rows-max", "1")
    assert (keys["units"], keys["examples"], keys["left_out"]) == (2, 2, 1)


def test_what_a_new_task_costs_is_told_with_the_sums_that_an_example_is_in() -> None:
    budget = BudgetSpec(max_epsilon=None, releases_max=8)
    example, device = planned_costs(built(period=4, budget=budget))
    assert (example.sums, device.sums) == (2, 8)
    assert "after all 8, of which it is in at most 2, at delta" in _cost(example, 8)
    every, _ = planned_costs(built(budget=budget))
    assert (every.sums, every.last > example.last) == (8, True)
    assert "after all 8, at delta" in _cost(every, 8)


def test_an_adaptive_clip_is_planned_at_its_joint_cost() -> None:
    for unit in ("device", "example"):
        fixed = plan_task(**TARGET, length=4096, unit=unit)
        adaptive = plan_task(**TARGET, length=4096, unit=unit, adaptive_clip=True)
        assert adaptive.noise_multiplier == pytest.approx(fixed.noise_multiplier, rel=2e-3)
        assert (fixed.noise_growth, fixed.quantile_noise) == (1.0, None)
        assert adaptive.noise_growth == pytest.approx(1.0078, abs=1e-4)
        grown = adaptive.noise_norm_over_clip / fixed.noise_norm_over_clip
        assert grown == pytest.approx(1.0078, rel=3e-3)
        # 8 max(gamma, 1 - gamma) z of the 100 devices, or of their 24 examples each.
        units = 100 if unit == "device" else 2400
        expected = 8.06 * 0.5 * adaptive.noise_multiplier / units
        assert adaptive.quantile_noise == pytest.approx(expected, rel=0.1)
    arguments = ("--cohort", "100", "--rounds", "10", "--epsilon", "4", "--length", "4096")
    keys = invoke("plan", "task", *arguments, "--adaptive-clip")
    assert 1.007 < keys["noise_growth"] < 1.008
    assert -1e-3 < keys["clip_bias"] < -1e-4


def test_plan_memory_says_peak_and_mode() -> None:
    keys = invoke("plan", "memory", "--model", "tiny", "--batch", "4")
    assert keys["mode"] == "hooks"
    assert keys["peak_bytes"] > 400 << 20
    tight = str(keys["peak_bytes"] - 1)
    fitted = invoke("plan", "memory", "--model", "tiny", "--batch", "4", "--available", tight)
    assert fitted["micro_batch"] < 4
    refused = invoke("plan", "memory", "--model", "tiny", "--available", "1000", code=1)
    assert refused["error"]["reason"] == "memory-too-small"
