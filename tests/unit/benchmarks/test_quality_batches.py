"""Rows of batches in the quality benchmark: each takes the examples it says, at one epsilon."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import quality, quality_chart, quality_clip, quality_report
from benchmarks.quality_plan import BATCH_PLANS, Cell, Key, Plan, Results, mean
from benchmarks.quality_rows import BATCH_ROWS, ROWS, noise_for, row_named, task_of
from client_sdk.training.algorithms import fedsgd
from dp.accounting.statements import headline, lines
from secagg.errors import ConfigurationError

PLAN = Plan(seeds=(0, 1), rates=(1.0, 4.0, 16.0), epsilons=(8.0,), tuning_seeds=(100,), clip=0.1)
REFERENCES = {"base model": 7.0, "no noise, no clip": 5.5}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "tiny-6x4-batches.jsonl")


def add(results, phase, rate, seed, loss, row, clip=0.1):
    results.add(
        Key(phase, row, 8.0, rate, seed, clip),
        {"loss": loss, "noise_multiplier": 0.6002, "load": 1.0},
    )


def chosen(results, row, losses):
    """4 is the best of the tuning seed; the reported seeds end at ``losses``."""
    for rate, loss in ((1.0, 5.4), (4.0, 5.0), (16.0, 5.5)):
        add(results, "tune", rate, 100, loss, row)
    for seed, loss in enumerate(losses):
        add(results, "test", 4.0, seed, loss, row)


def test_names_are_those_of_one_row():
    names = [row.name for row in (*ROWS, *BATCH_ROWS)]
    assert len(set(names)) == len(names)
    assert all(row_named(name).name == name for name in names)


@pytest.mark.parametrize("row", BATCH_ROWS, ids=lambda row: row.name)
def test_every_row_is_a_task_at_the_same_epsilon_that_divides_by_about_its_examples(row):
    manifest = task_of(row, "tiny", 6, 4, 0, 8.0, 8.0, 0.25)
    assert 0.98 * 8 < headline(lines(manifest, 4)) <= 8
    assert manifest.example_privacy.clip == 0.25
    assert manifest.training.server_learning_rate == 32.0  # 8 per clip
    held = sum(len(part) for part in quality.data_of(6, 0, "test")[0])
    in_a_sum = held * row.passes(4) / 4
    assert manifest.training.denominator == pytest.approx(in_a_sum, rel=0.15)


@pytest.mark.parametrize(("name", "sums"), [("Poisson", 4), ("b=4", 1), ("b=2", 2), ("b=1", 4)])
def test_the_noise_is_that_of_the_sums_that_an_example_is_in(name, sums):
    row, whole = row_named(f"FedSVD {name}"), row_named("FFA-LoRA b=1")
    found = noise_for(row, "tiny", 6, 4, 8.0)
    assert found == pytest.approx(noise_for(whole, "tiny", 6, sums, 8.0), rel=0.002)
    assert found == pytest.approx(math.sqrt(sums) * 0.6, rel=0.12)  # of the exact Gaussian, at 8


@pytest.mark.parametrize(("name", "each"), [("b=4", 1), ("b=2", 2), ("b=1", 4)])
def test_in_a_run_every_example_serves_as_often_as_the_row_says(monkeypatch, name, each):
    """On every device, also one with more examples than the ring has room for in a part."""
    served = []

    def seen(privacy, work):
        found = fedsgd_batch(privacy, work)
        served.append((len(work.rows), found.tolist()))
        return found

    fedsgd_batch = fedsgd.secret_batch
    monkeypatch.setattr(fedsgd, "secret_batch", seen)
    key = Key("test", f"FFA-LoRA {name}", 8.0, 4.0, 0, 0.25)
    result = quality.Run(key, "tiny", 2, 4).measure()
    assert result["releases"] == 4
    assert result["spent"] <= 8
    sizes = [len(part) for part in quality.data_of(2, 0, "test")[0]]
    assert [size for size, _ in served] == sizes * 4
    for device, size in enumerate(sizes):
        counts = Counter(place for _, places in served[device::2] for place in places)
        assert counts == dict.fromkeys(range(size), each)
        lengths = [len(places) for _, places in served[device::2]]
        assert max(lengths) - min(lengths) <= 1


def test_without_privacy_there_are_no_parts():
    with pytest.raises(ConfigurationError) as caught:
        task_of(row_named("FFA-LoRA b=4"), "tiny", 6, 4, 0, 8.0, None)
    assert caught.value.expected == "period = 1"


def test_runs_of_another_clip_are_another_cell_and_lines_of_before_have_clip_1(results):
    row = BATCH_ROWS[0].name
    chosen(results, row, (5.2, 5.3))
    add(results, "test", 4.0, 0, 0.1, row, clip=1.0)
    assert len(Cell(PLAN, results.all(), row, 8.0).tests()) == 2
    assert Cell(replace(PLAN, clip=1.0), results.all(), row, 8.0).tests() == ()
    line = '{"phase":"tune","row":"FedAvg","epsilon":null,"rate":4.0,"seed":100,"loss":4.4}\n'
    with results.path.open("a") as file:
        file.write(line)
    assert Key("tune", "FedAvg", None, 4.0, 100, 1.0) in results.all()


def test_the_table_has_a_line_for_each_choice_and_both_forms_beside_each_other(results):
    chosen(results, "FFA-LoRA b=4", (5.1, 5.3))
    chosen(results, "FedSVD b=4", (4.9,))
    add(results, "test", 4.0, 0, 9.0, "FedSVD b=4", clip=1.0)  # another table's
    made = quality_report.batch_table(PLAN, results, 4)
    row = next(text for text in made.splitlines() if text.startswith("| one part of 4 |"))
    assert row == (
        "| one part of 4 | 1 of 4 | 1 | 0.60 | 5.200 ± 0.141 | 4.900 ± 0.000 (1 seeds) | 4, 4 |"
    )
    assert "| all examples |" not in made, "no run of it"
    chosen(results, "FedSVD b=1", (4.8,))
    assert "| all examples | 4 of 4 | 4 | – | not run | 4.800" in quality_report.batch_table(
        PLAN, results, 4
    )
    assert "Clip 0.1; rates are per clip." in made
    assert "6 runs to choose rates, 3 reported" in made


def test_the_page_gets_the_table_between_its_marks(results, tmp_path):
    page = tmp_path / "page.md"
    name = results.path.stem
    begin, end = quality_report.BEGIN.format(name), quality_report.END.format(name)
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    chosen(results, "FFA-LoRA b=4", (5.1, 5.3))
    quality_report.write_batches(PLAN, results, 4, page)
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n| a step's examples |")
    assert text.endswith(f"{end}\nafter\n")
    assert "old" not in text


def test_rows_of_batches_are_compared_seed_by_seed(results):
    chosen(results, "FFA-LoRA b=4", (5.1, 5.3))
    chosen(results, "FFA-LoRA Poisson", (5.4, 5.5))
    made = quality_report.differences(PLAN, results, "FFA-LoRA Poisson", BATCH_ROWS)
    assert "| FFA-LoRA b=4 | -0.25 ± 0.07 (2 of 2) |" in made


def test_the_curve_names_what_a_step_is_made_of_and_what_no_noise_would_give(results):
    chosen(results, "FFA-LoRA b=4", (5.1, 5.3))
    row = row_named("FFA-LoRA b=4")
    line = [Cell(PLAN, results.all(), row.name, epsilon) for epsilon in (8.0, 3.0)]
    made = quality_chart.curve({row.label: line}, REFERENCES, "salt")
    assert ">8<" in made
    assert ">3<" not in made  # has no run
    for text in ("FFA-LoRA b=4: one part of 4", "no noise, no clip", "base model"):
        assert text in made


def test_the_curve_has_the_clip_of_the_other_table_beside_it():
    path = quality.RESULTS / "tiny-6x8.jsonl"
    line, known = quality.at_clip_1("tiny", path, (8.0, 3.0))
    assert {cell.epsilon: round(mean(cell), 3) for cell in line} == {8.0: 6.412, 3.0: 6.627}
    assert known == {"no noise, no clip": pytest.approx(6.274, abs=5e-4)}


@pytest.mark.parametrize("model", sorted(BATCH_PLANS))
def test_a_search_begins_at_a_rate_of_its_list(model):
    assert BATCH_PLANS[model].start in BATCH_PLANS[model].rates


def test_the_signal_of_a_clip_is_the_mean_after_the_clip_in_clips():
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [-3.0, 4.0], [0.0, 0.0]])
    length, clipped = quality_clip.signal(gradients, 5.0)  # two at the clip, none beyond
    assert (length, clipped) == (pytest.approx(math.hypot(0.3, 8.4) / 4 / 5), 0.0)
    length, clipped = quality_clip.signal(gradients, 1.0)
    mean_of_clipped = np.array([0.6 + 0.3 - 0.6, 0.8 + 0.4 + 0.8]) / 4
    assert (length, clipped) == (pytest.approx(np.linalg.norm(mean_of_clipped)), 0.5)


def test_clips_are_compared_by_gradients_of_every_example_of_the_tuning_seed():
    gradients = quality_clip.gradients_of("tiny", 2)
    training, _ = quality.data_of(2, BATCH_PLANS["tiny"].tuning_seeds[0], "tune")
    assert gradients.shape == (sum(map(len, training)), 1024)
    text = "\n".join(quality_clip.lines_of(gradients))
    for clip in (1.0, 0.1):
        length, clipped = quality_clip.signal(gradients, clip)
        assert f"clip {clip:g}: signal {length:.2f}, {100 * clipped:.0f} % clipped" in text
