"""The quality benchmark: even to its rows, resumable, and honest about what it did not run."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from benchmarks import foldoc, quality, quality_chart, quality_report
from benchmarks.frozen import freeze_below
from benchmarks.quality_plan import Cell, Key, Plan, Results, missing
from benchmarks.quality_rows import ROWS, model_of, noise_for, task_of
from client_sdk.training.adapted import AdaptedModel
from client_sdk.training.examples import encode_example
from client_sdk.training.gradients import ExampleGradients
from client_sdk.training.lora import adapter_spec, base_fingerprint
from dp.accounting.statements import headline, lines
from secagg.errors import ConfigurationError

FFA = next(row for row in ROWS if row.name == "FFA-LoRA")
PLAN = Plan(seeds=(0, 1), rates=(1.0, 4.0, 16.0), epsilons=(None, 3.0), tuning_seeds=(100, 101))
ROW = "FedAvg"
REFERENCES = {"base model": 7.0, "token frequencies": 5.5}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "tiny-6x8.jsonl")


def add(results, phase, rate, seed, loss, row=ROW, epsilon=None, **more):
    fields = {"loss": loss, "bytes_up": 1_500_000, "bytes_down": 2_000, "device_seconds": 3.0}
    results.add(Key(phase, row, epsilon, rate, seed), fields | {"load": 1.0} | more)


def tuned(results, **where):
    """16 is out after the first seed; 4 is better than 1 over both."""
    for rate, losses in ((1.0, (5.0, 5.6)), (4.0, (5.1, 5.2)), (16.0, (9.0, None))):
        for seed, loss in zip(PLAN.tuning_seeds, losses, strict=True):
            if loss is not None:
                add(results, "tune", rate, seed, loss, **where)


def todo(results, rows=(ROW,)):
    return missing(PLAN, results.all(), rows)


def test_every_row_is_tuned_over_the_same_rates_before_any_is_reported(results):
    keys = todo(results, ("FedAvg", "FFA-LoRA"))
    assert {key.phase for key in keys} == {"tune"}
    assert {key.seed for key in keys} == {100}
    for row in ("FedAvg", "FFA-LoRA"):
        for epsilon in PLAN.epsilons:
            tried = [key.rate for key in keys if (key.row, key.epsilon) == (row, epsilon)]
            assert tuple(tried) == PLAN.rates


def test_the_best_rates_of_one_seed_are_compared_over_all_and_the_rest_is_not_run(results):
    for rate, loss in ((1.0, 5.0), (4.0, 5.1), (16.0, 9.0)):
        add(results, "tune", rate, 100, loss)
    keys = [key for key in todo(results) if key.epsilon is None]
    assert [(key.phase, key.rate, key.seed) for key in keys] == [
        ("tune", 1.0, 101),
        ("tune", 4.0, 101),
    ]


def test_the_rate_is_chosen_by_the_mean_validation_loss_and_never_by_a_reported_run(results):
    tuned(results)
    add(results, "test", 1.0, 0, 0.1)  # somebody's test run at another rate changes nothing
    cell = Cell(PLAN, results.all(), ROW, None)
    assert cell.rate == 4.0
    assert not cell.at_the_edge
    keys = [key for key in todo(results) if key.epsilon is None]
    assert [(key.phase, key.rate, key.seed) for key in keys] == [("test", 4.0, 0), ("test", 4.0, 1)]


def test_a_run_that_diverged_counts_as_infinitely_bad(results):
    for rate, seed, loss in ((1.0, 100, 6.0), (4.0, 100, 5.0), (16.0, 100, None)):
        add(results, "tune", rate, seed, loss)
    add(results, "tune", 1.0, 101, 6.0)
    add(results, "tune", 4.0, 101, None, failed="training-diverged")
    assert Cell(PLAN, results.all(), ROW, None).rate == 1.0


def uphill(losses):
    """The rates of the first seed, in the order in which the plan asks for them."""
    plan = replace(
        PLAN, rates=tuple(sorted(losses)), tuning_seeds=(100,), start=4.0, epsilons=(3.0,)
    )
    found, tried = {}, []
    while (keys := missing(plan, found, [ROW])) and keys[0].phase == "tune":
        (key,) = keys
        tried.append(key.rate)
        found[key] = {"loss": losses[key.rate]}
    cell = Cell(plan, found, ROW, 3.0)
    return tried, cell.rate, cell.at_the_edge


def test_from_a_starting_rate_the_search_goes_on_as_long_as_a_neighbour_is_better():
    assert uphill({1: 5.2, 4: 5.0, 16: 5.1, 64: 4.0}) == ([4, 16, 1], 4, False)
    assert uphill({1: 9.0, 4: 5.0, 16: 4.9, 64: None}) == ([4, 16, 64], 16, False)
    assert uphill({0.25: 5.0, 1: 4.8, 4: None, 16: None}) == ([4, 16, 1, 0.25], 1, False)
    assert uphill({4: 5.0, 16: 4.9, 64: 4.8}) == ([4, 16, 64], 64, True)


def test_a_single_rate_needs_no_tuning(results):
    plan = replace(PLAN, rates=(4.0,))
    assert {key.phase for key in missing(plan, results.all(), [ROW])} == {"test"}


def test_a_refused_combination_is_shown_as_none_and_not_tried_again(results):
    results.add(Key("tune", ROW, 3.0, 1.0, 100), {"refused": "no-example-privacy", "load": 1.0})
    assert all(key.epsilon is None for key in todo(results))
    made = quality_report.table(PLAN, results, REFERENCES)
    assert "| FedAvg | not run |  | none |" in made
    assert "0 runs to choose rates" in made


def test_rows_are_compared_seed_by_seed(results):
    for row, losses in ((ROW, (5.0, 6.0)), ("FFA-LoRA", (4.8, 6.1))):
        tuned(results, row=row)
        for seed, loss in enumerate(losses):
            add(results, "test", 4.0, seed, loss, row=row)
    made = quality_report.differences(PLAN, results, ROW)
    assert "| FFA-LoRA | -0.05 ± 0.21 (1 of 2) |  |" in made


def test_a_line_that_another_process_is_writing_is_read_when_it_is_whole(results):
    tuned(results)
    whole = results.path.read_bytes()
    results.path.write_bytes(whole[:-10])
    fresh = Results(results.path)
    assert len(fresh.all()) == 4
    results.path.write_bytes(whole)
    assert len(fresh.all()) == 5


def test_the_table_shows_mean_spread_and_cost_and_names_what_was_not_run(results):
    tuned(results)
    add(results, "test", 4.0, 0, 5.1)
    add(results, "test", 4.0, 1, 5.3)
    add(results, "tune", 4.0, 100, 5.3, row="FFA-LoRA")
    made = quality_report.table(PLAN, results, REFERENCES)
    line = next(text for text in made.splitlines() if text.startswith("| FedAvg |"))
    assert line.startswith("| FedAvg | 5.200 ± 0.141 | 181 | not run |")
    assert line.endswith("| 1.5 MB | 2.0 KB | 3.0 | 4, – |")
    assert "| base model | 7.000 | 1097 |" in made
    assert "| FFA-LoRA | rate not chosen yet |" in made
    assert "6 runs to choose rates, 2 reported" in made


def test_the_table_says_how_few_seeds_there_are_and_marks_a_rate_at_the_edge(results):
    for seed in PLAN.tuning_seeds:
        for rate in PLAN.rates:
            add(results, "tune", rate, seed, 8 - rate / 8)
    add(results, "test", 16.0, 0, 5.0)
    made = quality_report.table(PLAN, results, REFERENCES)
    assert "5.000 ± 0.000 (1 seeds)" in made
    assert "| 16*, – |" in made


def test_the_chart_is_well_formed_and_has_a_mark_for_each_cell(results):
    for epsilon in PLAN.epsilons:
        tuned(results, epsilon=epsilon)
        add(results, "test", 4.0, 0, 5.0, epsilon=epsilon)
    rows = [row.name for row in ROWS]
    made = quality_chart.chart(PLAN, results, rows, REFERENCES)
    assert made == quality_chart.chart(PLAN, results, rows, REFERENCES)
    texts = texts_of(made)
    assert {"FedAvg", "ε = ∞", "ε = 3", "base model", "token frequencies"} <= texts
    assert "FedProx" not in texts  # has no run


def test_the_curve_has_its_rows_and_epsilons_smallest_first(results):
    for epsilon, loss in ((None, 5.0), (3.0, 6.0)):
        tuned(results, epsilon=epsilon)
        add(results, "test", 4.0, 0, loss, epsilon=epsilon)
    found = [Cell(PLAN, results.all(), ROW, epsilon) for epsilon in PLAN.epsilons]
    made = quality_chart.curve({"local noise": found}, REFERENCES, "salt")
    assert {"local noise", "3", "∞", "base model"} <= texts_of(made)
    assert made.index(">3<") < made.index(">∞<")


def texts_of(svg):
    root = ET.fromstring(svg)  # noqa: S314  (our own text)
    return {element.text for element in root.iter() if element.tag.endswith("text")}


def test_the_report_replaces_only_what_is_between_its_marks(results, tmp_path):
    tuned(results)
    add(results, "test", 4.0, 0, 5.0)
    page = tmp_path / "page.md"
    begin, end = (m.format("tiny-6x8") for m in (quality_report.BEGIN, quality_report.END))
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    quality_report.write_report(PLAN, results, REFERENCES, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert (tmp_path / "quality-tiny-6x8.svg").exists()


def test_tuning_sees_no_test_pair_and_no_run_trains_on_what_judges_it():
    _, test_pairs = quality.data_of(6, 0, "test")
    for seed in (0, 1, 100):
        training, validation = quality.data_of(6, seed, "tune")
        assert quality.data_of(6, seed, "test") == (training, test_pairs)
        trained = {pair for device in training for pair in device}
        assert not {q for q, _ in trained} & {q for q, _ in validation}
        assert not trained & set(test_pairs)
        assert not set(validation) & set(test_pairs)
    assert quality.data_of(6, 0, "tune")[1] != quality.data_of(6, 1, "tune")[1]


@pytest.mark.parametrize("epsilon", [8.0, 3.0])
def test_the_noise_is_the_least_that_keeps_the_promise(epsilon):
    manifest = task_of(FFA, "tiny", 3, 2, 0, 4.0, epsilon)
    cost = headline(lines(manifest, 2))
    assert 0.98 * epsilon < cost <= epsilon
    assert manifest.example_privacy.noise_multiplier == noise_for(FFA, "tiny", 3, 2, epsilon)


@pytest.mark.parametrize("row", [row for row in ROWS if row.exists], ids=lambda row: row.name)
def test_every_row_is_a_task_that_the_validator_admits(row):
    task_of(row, "tiny", 3, 2, 0, 1.0, None)
    if row.private is not None:
        manifest = task_of(row, "tiny", 3, 2, 0, 1.0, 8.0)
        assert headline(lines(manifest, manifest.budget.releases_max)) <= 8.0


def test_a_run_with_its_line_is_not_repeated(results, monkeypatch):
    plan = Plan(seeds=(0,), rates=(4.0,), epsilons=(None,))
    chosen = {"rows": ["FFA-LoRA"], "batches": False, "model": "tiny", "data": "chatterbot"}
    arguments = type("A", (), chosen | {"clients": 2, "steps": 1})()
    quality.run_all(arguments, plan, results)
    (result,) = results.all().values()
    assert result["loss"] < quality.references("tiny", 2)["base model"]
    monkeypatch.setattr(quality, "_one", lambda *_: pytest.fail("ran again"))
    quality.run_all(arguments, plan, results)


def test_frozen_layers_that_remember_change_no_gradient():
    """Whatever batch a conversation was first seen in, and in every copy of the model."""
    base, tokenizer, _ = model_of("tiny")
    frozen = copy.deepcopy(base)
    freeze_below(frozen, 1, tokenizer.pad_token_id)
    assert len(frozen.model.layers) == 2
    pairs = quality.data_of(2, 0, "test")[0][0][:6]
    rows = [encode_example(tokenizer, pair, 64) for pair in pairs]
    last = f"layers.{len(base.model.layers) - 1}."
    wanted = gradients_of(base, rows, last)
    first, second = gradients_of(frozen, rows[::-1], ""), gradients_of(frozen, rows, "")
    assert wanted.norm(dim=1).min() > 0
    torch.testing.assert_close(first.flip(0), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second, wanted, rtol=1e-4, atol=1e-6)


def gradients_of(base, rows, layer):
    """Of the adapter's tensors in ``layer``, in passes of two rows."""
    model = copy.deepcopy(base)
    fingerprint = base_fingerprint(model)  # of the layers that are seen
    spec = adapter_spec(model, "ffa-lora", 2, 4, ("q_proj", "v_proj"), bytes(32))
    manifest = task_of(FFA, "tiny", 3, 2, 0, 1.0, None)
    manifest = replace_parts(manifest, spec, fingerprint)
    adapted = AdaptedModel(model, manifest, fingerprint)
    adapted.load(np.zeros(adapted.vector_length, np.float32))
    chosen = []
    for name, parameter in adapted.model.named_parameters():
        parameter.requires_grad_("lora_B" in name and layer in name)
        chosen += [parameter] if parameter.requires_grad else []
    found = []
    with ExampleGradients(adapted.model, chosen, pad_token=0) as gradients:
        for start in range(0, len(rows), 2):
            gradients.run(rows[start : start + 2])
            found.append(gradients.flat())
    return torch.cat(found)


def replace_parts(manifest, adapter, fingerprint):
    base_model = msgspec.structs.replace(manifest.base_model, fingerprint=fingerprint)
    return msgspec.structs.replace(manifest, adapter=adapter, base_model=base_model)


DICTIONARY = """\
Preface

   No entry: there is no subject.

compiler

   <programming> A {program} that
   translates another one.  More follows.

   (1999-01-01)

Compiler

   <tool> The same term again, which counts only once.

router

   <networking, hardware> An entry of two subjects belongs to neither.

hub

   <networking> A device that connects several others.
"""


def test_the_dictionary_is_read_by_subject():
    assert foldoc.subjects(DICTIONARY) == {
        "programming": [("What is compiler?", "A program that translates another one.")],
        "networking": [("What is hub?", "A device that connects several others.")],
    }


def test_a_dictionary_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(foldoc, "_DICTIONARY", tmp_path / "foldoc.dict.dz")
    with pytest.raises(ConfigurationError, match="dict-foldoc") as caught:
        foldoc.load_subjects(6)
    assert caught.value.reason == "corpus-missing"
